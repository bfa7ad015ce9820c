//! The state of the connection to the control plane, as operators see it.

use std::collections::BTreeMap;

use ambit_runtime::version;
use ambit_wire::xds;

use super::rfc3339;

/// Since when the control plane is connected, what came last, what was refused.
pub fn state(subscription: Option<&xds::Handle>) -> serde_json::Value {
    let Some(handle) = subscription else {
        return serde_json::json!({ "version": version::line(), "configured": false });
    };
    let state = handle.state();
    serde_json::json!({
        "version": version::line(),
        "configured": true,
        "synced": handle.is_synced(),
        "connectedSince": state.connected_since.map(rfc3339),
        "disconnectedSince": state.disconnected_since.map(rfc3339),
        "lastUpdate": state.last_update.map(rfc3339),
        "lastEnd": state.last_end,
        "lastNack": state.last_nack.map(|nack| serde_json::json!({
            "at": rfc3339(nack.at), "typeUrl": nack.type_url, "message": nack.message,
        })),
        "held": state.held.into_iter().collect::<BTreeMap<_, _>>(),
    })
}
