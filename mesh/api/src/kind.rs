//! What every custom kind has in common: its name in the API, and the shape around its `spec`.

/// The place of a custom kind in the Kubernetes API.
pub trait CustomKind {
    /// The API group, `security.istio.io`.
    const GROUP: &'static str;
    /// Every version of the group under which the same fields are accepted, newest first.
    const VERSIONS: &'static [&'static str];
    /// The kind, `AuthorizationPolicy`.
    const KIND: &'static str;
    /// The plural of the kind in request paths, `authorizationpolicies`.
    const PLURAL: &'static str;
}

/// Declares a custom kind: the object around a `spec`, and its [`CustomKind`].
macro_rules! custom_kind {
    ($(#[$doc:meta])* $name:ident($spec:ty), $group:literal, [$($version:literal),+], $plural:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(rename_all = "camelCase")]
        pub struct $name {
            /// Name, namespace, labels and annotations.
            #[serde(default)]
            pub metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
            /// What the user wants.
            #[serde(default)]
            pub spec: $spec,
            /// What controllers reported.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub status: Option<serde_json::Value>,
        }

        impl $crate::kind::CustomKind for $name {
            const GROUP: &'static str = $group;
            const VERSIONS: &'static [&'static str] = &[$($version),+];
            const KIND: &'static str = stringify!($name);
            const PLURAL: &'static str = $plural;
        }
    };
}
pub(crate) use custom_kind;
