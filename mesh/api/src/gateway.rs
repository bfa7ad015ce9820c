//! Gateway API: what the mesh reads of `Gateway` and `GatewayClass`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::kind::custom_kind;

/// The classes whose gateways are waypoints of ours unless their GatewayClass names another controller.
pub const WAYPOINT_CLASSES: [&str; 2] = ["ambit-waypoint", "istio-waypoint"];
/// As whom a GatewayClass names us.
pub const WAYPOINT_CONTROLLER: &str = "ambit.io/waypoint-controller";
/// As whom a GatewayClass names Istio, which makes waypoints too.
pub const ISTIO_WAYPOINT_CONTROLLER: &str = "istio.io/mesh-controller";
/// The protocol of a waypoint's listener.
pub const HBONE: &str = "HBONE";
/// The port of that listener.
pub const HBONE_PORT: u16 = 15008;

custom_kind! {
    /// A gateway; a waypoint is one too. Its `status.addresses` is read with [`GatewayStatus`].
    Gateway(GatewaySpec), "gateway.networking.k8s.io", ["v1", "v1beta1"], "gateways"
}

custom_kind! {
    /// A kind of gateway and the controller that serves it.
    GatewayClass(GatewayClassSpec), "gateway.networking.k8s.io", ["v1", "v1beta1"], "gatewayclasses"
}

/// The wish of a [`Gateway`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct GatewaySpec {
    /// Name of its GatewayClass, `istio-waypoint`.
    pub gateway_class_name: String,
    /// Where it accepts connections.
    pub listeners: Vec<Listener>,
    /// Wanted addresses.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<GatewayAddress>,
    /// What whoever makes its instances is to heed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub infrastructure: Option<Infrastructure>,
}

/// What whoever makes a gateway's instances is to heed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Infrastructure {
    /// Labels of everything that is made.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Annotations of everything that is made.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// A ConfigMap of the gateway's namespace: what is laid over what is made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parameters_ref: Option<ParametersRef>,
}

/// An object that holds parameters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ParametersRef {
    /// Its API group; empty is Kubernetes' own.
    pub group: String,
    /// Its kind, `ConfigMap`.
    pub kind: String,
    /// Its name.
    pub name: String,
}

/// The wish of a [`GatewayClass`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct GatewayClassSpec {
    /// The controller, `istio.io/mesh-controller`.
    pub controller_name: String,
}

/// One listener of a gateway.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Listener {
    /// Its name.
    pub name: String,
    /// Its port.
    pub port: u32,
    /// `HBONE`, `HTTP`, `istio.io/PROXY`, …
    pub protocol: String,
    /// Who may attach to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed_routes: Option<AllowedRoutes>,
}

/// Who may attach to a listener.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AllowedRoutes {
    /// From which namespaces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<RouteNamespaces>,
    /// Of which kinds.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kinds: Vec<Value>,
}

/// Namespaces that may attach to a listener.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RouteNamespaces {
    /// Which of them.
    pub from: FromNamespaces,
    /// With [`FromNamespaces::Selector`]: a Kubernetes label selector.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<Value>,
}

/// Which namespaces may attach to a listener.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum FromNamespaces {
    /// The gateway's own.
    #[default]
    Same,
    /// Every one.
    All,
    /// Those whose labels match the selector.
    Selector,
    /// None.
    None,
}

/// What controllers reported of a [`Gateway`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct GatewayStatus {
    /// Where it can be reached; none means that it is not ready.
    pub addresses: Vec<GatewayAddress>,
}

/// An address of a gateway.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct GatewayAddress {
    /// `Hostname` or `IPAddress`; absent is `IPAddress`.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// The address.
    pub value: String,
}
