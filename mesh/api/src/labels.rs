//! Every label and annotation that the mesh reads or writes, in one place.
//!
//! Names are Istio's, Gateway API's or Kubernetes', except for those under `ambit.io/`, which are our own.

/// Label of Namespace and Pod: `ambient` enrols, `none` opts out; a pod's own value wins.
pub const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";
/// Value of [`DATAPLANE_MODE`] that enrols.
pub const DATAPLANE_MODE_AMBIENT: &str = "ambient";
/// Value of [`DATAPLANE_MODE`] that opts out.
pub const DATAPLANE_MODE_NONE: &str = "none";

/// Label of Pod, `false`: it gets no sidecar.
pub const SIDECAR_INJECT: &str = "sidecar.istio.io/inject";
/// Annotation of Pod, any value: it has a sidecar, and is never captured.
pub const SIDECAR_STATUS: &str = "sidecar.istio.io/status";

/// Annotation of Pod, written by the node agent: `enabled` when its traffic is captured, `pending` before.
/// Also read on WorkloadEntry and ServiceEntry. Only `enabled` makes a workload reachable by HBONE.
pub const REDIRECTION: &str = "ambient.istio.io/redirection";
/// Value of [`REDIRECTION`]: captured.
pub const REDIRECTION_ENABLED: &str = "enabled";
/// Value of [`REDIRECTION`]: about to be captured.
pub const REDIRECTION_PENDING: &str = "pending";

/// Annotation of Pod, `true`: only outgoing traffic is captured.
pub const BYPASS_INBOUND_CAPTURE: &str = "ambient.istio.io/bypass-inbound-capture";
/// Annotation of Pod, `true` or `false`: whether DNS is captured, over the mesh's default.
pub const DNS_CAPTURE: &str = "ambient.istio.io/dns-capture";
/// Annotation of Pod: interfaces, separated by commas, whose traffic comes from virtual machines.
pub const REROUTE_VIRTUAL_INTERFACES: &str = "istio.io/reroute-virtual-interfaces";

/// Label of Pod and WorkloadEntry: tunnels it terminates itself, separated by commas.
pub const TUNNEL: &str = "networking.istio.io/tunnel";
/// Word in [`TUNNEL`] that means HBONE.
pub const TUNNEL_HTTP: &str = "http";
/// Label of Pod: `istio` for a sidecar's own mutual TLS, which this mesh does not speak.
pub const TLS_MODE: &str = "security.istio.io/tlsMode";

/// Label of Namespace, Service, ServiceEntry, Pod and WorkloadEntry: the waypoint's name, or `none`.
pub const USE_WAYPOINT: &str = "istio.io/use-waypoint";
/// Value of [`USE_WAYPOINT`] that opts out of an inherited one.
pub const USE_WAYPOINT_NONE: &str = "none";
/// Label beside [`USE_WAYPOINT`]: the waypoint's namespace, when it is another.
pub const USE_WAYPOINT_NAMESPACE: &str = "istio.io/use-waypoint-namespace";
/// Label of Namespace, Service and ServiceEntry: a second waypoint that gets a share of the traffic.
pub const USE_WAYPOINT_CANARY: &str = "istio.io/use-waypoint-canary";
/// Label beside [`USE_WAYPOINT_CANARY`]: its namespace, when it is another.
pub const USE_WAYPOINT_CANARY_NAMESPACE: &str = "istio.io/use-waypoint-canary-namespace";
/// Annotation beside [`USE_WAYPOINT_CANARY`]: its share, 0 to 100; absent is 0.
pub const USE_WAYPOINT_CANARY_WEIGHT: &str = "istio.io/use-waypoint-canary-weight";
/// Label of Namespace, Service and ServiceEntry, a boolean: ingress gateways go through the waypoint too.
pub const INGRESS_USE_WAYPOINT: &str = "istio.io/ingress-use-waypoint";
/// Label of Gateway and GatewayClass: `service` (default), `workload`, `all` or `none`.
pub const WAYPOINT_FOR: &str = "istio.io/waypoint-for";
/// Annotation of Gateway and GatewayClass: `NONE` or `PROXY`, and optionally `/port`: how connections
/// are handed to the waypoint's own process.
pub const WAYPOINT_INBOUND_BINDING: &str = "ambient.istio.io/waypoint-inbound-binding";
/// Annotation of Gateway and GatewayClass, `true`: `x-forwarded-client-cert` names the client.
pub const XFCC_INCLUDE_CLIENT_IDENTITY: &str = "ambient.istio.io/xfcc-include-client-identity";

/// Label of Pod and Service: the Gateway of which it is an instance.
pub const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";
/// Label of Pod and Service: the class of that Gateway.
pub const GATEWAY_CLASS_NAME: &str = "gateway.networking.k8s.io/gateway-class-name";
/// Label of Pod and Service: the controller that made it.
pub const GATEWAY_MANAGED: &str = "gateway.istio.io/managed";
/// Value of [`GATEWAY_MANAGED`] for waypoints.
pub const MANAGED_MESH: &str = "istio.io-mesh-controller";
/// Value of [`GATEWAY_MANAGED`] for east-west gateways.
pub const MANAGED_EAST_WEST: &str = "istio.io-eastwest-controller";
/// Value of [`GATEWAY_MANAGED`] for ingress gateways.
pub const MANAGED_GATEWAY: &str = "istio.io-gateway-controller";

/// Label of the system namespace (the cluster's network) and of Gateway (the network behind it).
pub const TOPOLOGY_NETWORK: &str = "topology.istio.io/network";
/// Label of Node: its region.
pub const TOPOLOGY_REGION: &str = "topology.kubernetes.io/region";
/// Label of Node: its zone.
pub const TOPOLOGY_ZONE: &str = "topology.kubernetes.io/zone";
/// Label of Node: its part of the zone.
pub const TOPOLOGY_SUBZONE: &str = "topology.istio.io/subzone";

/// Annotation of Namespace, Service and ServiceEntry: `PreferClose`, `PreferSameZone` or `PreferSameNode`,
/// in any case.
pub const TRAFFIC_DISTRIBUTION: &str = "networking.istio.io/traffic-distribution";
/// Label of Namespace and Service, `true`: it is shared between clusters.
pub const GLOBAL: &str = "istio.io/global";
/// Annotation of AuthorizationPolicy, a boolean: evaluated and logged, never enforced.
pub const DRY_RUN: &str = "istio.io/dry-run";

/// Label of Pod: its name in telemetry.
pub const CANONICAL_NAME: &str = "service.istio.io/canonical-name";
/// Label of Pod: its revision in telemetry.
pub const CANONICAL_REVISION: &str = "service.istio.io/canonical-revision";
/// Label of Pod, second choice for the canonical name.
pub const APP_KUBERNETES_NAME: &str = "app.kubernetes.io/name";
/// Label of Pod, third choice for the canonical name.
pub const APP: &str = "app";
/// Label of Pod, second choice for the canonical revision.
pub const APP_KUBERNETES_VERSION: &str = "app.kubernetes.io/version";
/// Label of Pod, third choice for the canonical revision.
pub const VERSION: &str = "version";

/// Label of everything that a control plane makes: its revision.
pub const REVISION: &str = "istio.io/rev";
/// Label of EndpointSlice: its Service.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Label of Pod, written by a ReplicaSet's Deployment: the hash that ends the ReplicaSet's name.
pub const POD_TEMPLATE_HASH: &str = "pod-template-hash";

/// Ours. Annotation of Pod, written by the lab: path of the pod's network namespace.
pub const NETNS: &str = "ambit.io/netns";
/// Ours. Annotation of Pod, written by the lab: the node that runs it, when `spec.nodeName` cannot say.
pub const NODE: &str = "ambit.io/node";

/// Ours. Annotation of Secret `istio-ca-secret`, written by `ambit ca rotate`: the step that is wished for, one of the
/// `CA_ROTATION_*` words. The leading controller carries it out or refuses it, and takes the annotation away.
pub const CA_ROTATION: &str = "ambit.io/ca-rotation";
/// Value of [`CA_ROTATION`]: make a new root and let everybody trust it; the old one goes on signing.
pub const CA_ROTATION_PREPARE: &str = "prepare";
/// Value of [`CA_ROTATION`]: the new root signs, both are trusted. Refused until everybody trusts the new one.
pub const CA_ROTATION_ACTIVATE: &str = "activate";
/// Value of [`CA_ROTATION`]: forget the old root. Refused while a certificate that it signed may be in use.
pub const CA_ROTATION_RETIRE: &str = "retire";
/// Value of [`CA_ROTATION`]: one step back. Forgetting a root that has signed is refused as retiring is.
pub const CA_ROTATION_ROLLBACK: &str = "rollback";
/// Ends a value of [`CA_ROTATION`] (`activate-now`, `retire-now`, `rollback-now`): do not wait, even if connections break.
pub const CA_ROTATION_NOW: &str = "-now";
/// Ours. Annotation of Secret `istio-ca-secret`, written by the controller: `steady`, `prepared` or `active`.
pub const CA_STAGE: &str = "ambit.io/ca-stage";
/// Ours. Annotation beside [`CA_STAGE`]: why the last wish was refused, until the next one.
pub const CA_REFUSAL: &str = "ambit.io/ca-refusal";
/// Ours. Annotation beside [`CA_STAGE`], RFC 3339: from when on the next root may sign.
pub const CA_ACTIVATE_FROM: &str = "ambit.io/ca-activate-from";
/// Ours. Annotation beside [`CA_STAGE`], RFC 3339: from when on the root that does not sign (any more) may be forgotten,
/// by `retire` when active and by `rollback` when prepared.
pub const CA_RETIRE_FROM: &str = "ambit.io/ca-retire-from";
/// Ours. Annotation beside [`CA_STAGE`], whole seconds: the longest life of a certificate that this root signed.
pub const CA_LONGEST_LIFE: &str = "ambit.io/ca-longest-life";

/// Ours. Annotation of Secret `cacerts`, written by the operator: fingerprints (SHA-256, hexadecimal, with commas between) of
/// roots that the mesh need not know any longer, although certificates in use lead to them.
pub const CA_DROP_ROOT: &str = "ambit.io/ca-drop-root";

/// Label of objects: who manages them.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Value of [`MANAGED_BY`] for what we make.
pub const MANAGED_BY_AMBIT: &str = "ambit";
/// Label of the ConfigMaps with roots and revocation lists, `true`.
pub const CONFIG: &str = "istio.io/config";

/// Ours. Begins the annotations of DestinationRule that are about success rates; no other may begin so.
pub const SUCCESS_RATE: &str = "ambit.io/success-rate-";
/// Ours. Annotation of DestinationRule, a number above zero: by how many standard deviations an endpoint's success rate may
/// be below the mean of all before it is set aside. Without it, success rates are not looked at.
pub const SUCCESS_RATE_STDEV_FACTOR: &str = "ambit.io/success-rate-stdev-factor";
/// Ours. Annotation beside [`SUCCESS_RATE_STDEV_FACTOR`]: how many endpoints must have had enough requests.
pub const SUCCESS_RATE_MINIMUM_HOSTS: &str = "ambit.io/success-rate-minimum-hosts";
/// Ours. Annotation beside [`SUCCESS_RATE_STDEV_FACTOR`]: how many requests in an interval are enough.
pub const SUCCESS_RATE_REQUEST_VOLUME: &str = "ambit.io/success-rate-request-volume";

/// Ours. Annotation of cert-manager's CertificateRequest: the identity that the certificate is for.
pub const CERTIFICATE_IDENTITY: &str = "ambit.io/identity";
