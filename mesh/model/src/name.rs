//! Names: shared strings, one type for each kind of thing that has one.
//!
//! A mesh repeats few strings very often (namespaces, clusters, service accounts), so a name is a
//! shared allocation: cloning one counts a reference.

use std::{borrow::Borrow, fmt, sync::Arc};

use serde::{Deserialize, Serialize};

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// Whether the name is the empty string, which several protocols use for "default".
            pub fn is_empty(&self) -> bool {
                self.0.is_empty()
            }

            /// The name made of this very allocation, so that equal names can share it.
            pub fn shared(text: Arc<str>) -> Self {
                Self(text)
            }
        }

        impl Default for $name {
            fn default() -> Self {
                Self(Arc::from(""))
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(Arc::from(text))
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(Arc::from(text))
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl PartialEq<str> for $name {
            fn eq(&self, other: &str) -> bool {
                &*self.0 == other
            }
        }

        impl PartialEq<&str> for $name {
            fn eq(&self, other: &&str) -> bool {
                &*self.0 == *other
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }
    )+};
}

names! {
    /// A Kubernetes namespace.
    Namespace,
    /// A fully qualified host name; may begin with `*.`.
    Hostname,
    /// A Kubernetes service account, without its namespace.
    ServiceAccount,
    /// The opaque, unique key of a workload (protocols 11.5).
    Uid,
    /// A network: workloads of one network reach each other's addresses. Empty is the default one.
    Network,
    /// A cluster.
    Cluster,
    /// A node.
    Node,
    /// Any other name: of a pod, a deployment, a region.
    Label,
}

/// `namespace/hostname`: what a service is known by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceKey {
    /// The namespace that defines the service.
    pub namespace: Namespace,
    /// Its host name.
    pub hostname: Hostname,
}

impl ServiceKey {
    /// The key of `hostname` in `namespace`.
    pub fn new(namespace: impl Into<Namespace>, hostname: impl Into<Hostname>) -> Self {
        Self { namespace: namespace.into(), hostname: hostname.into() }
    }

    /// Reads `namespace/hostname`; `None` when there is no slash, or more than one.
    pub fn parse(text: &str) -> Option<Self> {
        let (namespace, hostname) = text.split_once('/')?;
        (!hostname.contains('/')).then(|| Self::new(namespace, hostname))
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.hostname)
    }
}

impl Serialize for ServiceKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// `namespace/name`: what a policy is known by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicyKey {
    /// The namespace of the policy.
    pub namespace: Namespace,
    /// Its name.
    pub name: Label,
}

impl PolicyKey {
    /// The key of `name` in `namespace`.
    pub fn new(namespace: impl Into<Namespace>, name: impl Into<Label>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// Reads `namespace/name`; `None` when there is no slash.
    pub fn parse(text: &str) -> Option<Self> {
        let (namespace, name) = text.split_once('/')?;
        Some(Self::new(namespace, name))
    }
}

impl fmt::Display for PolicyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl Serialize for PolicyKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_key_has_exactly_one_slash() {
        assert_eq!(ServiceKey::parse("shop/web.shop.svc"), Some(ServiceKey::new("shop", "web.shop.svc")));
        assert_eq!(ServiceKey::parse("web"), None);
        assert_eq!(ServiceKey::parse("Kubernetes//Pod/shop/web"), None);
    }
}
