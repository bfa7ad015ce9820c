//! Gateway API's `ReferenceGrant`: which routes of other namespaces may refer to objects of this one.

use serde::{Deserialize, Serialize};

use crate::kind::custom_kind;

custom_kind! {
    /// Which routes of other namespaces may refer to objects of this one.
    ReferenceGrant(ReferenceGrantSpec), "gateway.networking.k8s.io", ["v1", "v1beta1", "v1alpha2"], "referencegrants"
}

/// The wish of a [`ReferenceGrant`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ReferenceGrantSpec {
    /// Who may refer.
    pub from: Vec<GrantFrom>,
    /// To what.
    pub to: Vec<GrantTo>,
}

/// Who may refer: objects of a kind in a namespace.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GrantFrom {
    /// Their group.
    pub group: String,
    /// Their kind.
    pub kind: String,
    /// Their namespace.
    pub namespace: String,
}

/// To what may be referred: objects of a kind in the grant's own namespace.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GrantTo {
    /// Their group.
    pub group: String,
    /// Their kind.
    pub kind: String,
    /// The name of the only one; absent is all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}
