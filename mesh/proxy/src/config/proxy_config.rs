//! The mesh's own configuration of proxies: a file of the mesh, and the variable `PROXY_CONFIG`.
//!
//! Only the fields that our proxies heed are read; the others belong to other kinds of proxy.

use std::collections::BTreeMap;

use serde::Deserialize;

/// Where the mesh's file is mounted, relative to the working directory as in Istio's images.
pub const MESH_FILE: &str = "./etc/istio/config/mesh";

/// What is heeded of a proxy's configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProxyConfig {
    /// Where the control plane is.
    pub discovery_address: Option<String>,
    /// The port of the operator's pages.
    pub proxy_admin_port: Option<u16>,
    /// The port of the metrics.
    pub status_port: Option<u16>,
    /// How many workers.
    pub concurrency: Option<usize>,
    /// What is told to the control plane.
    pub proxy_metadata: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct MeshConfig {
    default_config: Option<ProxyConfig>,
}

impl ProxyConfig {
    /// The proxies' default configuration in the mesh's file; empty text is an empty file.
    pub fn of_mesh(yaml: &str) -> Result<Self, serde_yaml_ng::Error> {
        let mesh: Option<MeshConfig> = serde_yaml_ng::from_str(yaml)?;
        Ok(mesh.unwrap_or_default().default_config.unwrap_or_default())
    }

    /// A proxy configuration by itself.
    pub fn of_proxy(yaml: &str) -> Result<Self, serde_yaml_ng::Error> {
        let proxy: Option<Self> = serde_yaml_ng::from_str(yaml)?;
        Ok(proxy.unwrap_or_default())
    }

    /// This configuration, overridden field by field by `over`; metadata key by key.
    pub fn overridden_by(mut self, over: Self) -> Self {
        self.proxy_metadata.extend(over.proxy_metadata);
        Self {
            discovery_address: over.discovery_address.or(self.discovery_address),
            proxy_admin_port: over.proxy_admin_port.or(self.proxy_admin_port),
            status_port: over.status_port.or(self.status_port),
            concurrency: over.concurrency.or(self.concurrency),
            proxy_metadata: self.proxy_metadata,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_proxys_own_configuration_overrides_the_meshs() {
        let mesh = ProxyConfig::of_mesh(
            "defaultConfig:\n  discoveryAddress: mesh:15012\n  statusPort: 1\n  proxyMetadata: {A: mesh, B: mesh}\n\
             trustDomain: ignored\n",
        );
        let own = ProxyConfig::of_proxy("{discoveryAddress: own:15012, proxyMetadata: {B: own}}");
        let both = mesh.unwrap().overridden_by(own.unwrap());
        assert_eq!(both.discovery_address.as_deref(), Some("own:15012"));
        assert_eq!(both.status_port, Some(1));
        let metadata: Vec<_> = both.proxy_metadata.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(metadata, [("A", "mesh"), ("B", "own")]);
    }

    #[test]
    fn an_empty_text_is_an_empty_configuration() {
        assert_eq!(ProxyConfig::of_mesh("").unwrap(), ProxyConfig::default());
        assert_eq!(ProxyConfig::of_proxy("").unwrap(), ProxyConfig::default());
        assert!(ProxyConfig::of_proxy("statusPort: many").is_err());
    }
}
