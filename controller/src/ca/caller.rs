//! Who may ask for which identity. Pure: all it knows is who calls, what is asked, and the [`Cluster`].
//!
//! | caller asks for | it gets it if |
//! |---|---|
//! | nothing by name, or its own identity | it is authenticated |
//! | another identity | its account is a trusted node account, **and** the identity is of our trust domain, **and** a pod that has not failed runs as it on the caller's node |
//!
//! The identity that signs debug tokens nobody gets, whoever he is.
//!
//! Whatever else is asked is refused as `Unauthenticated` (protocols 3.4).

use ambit_model::{
    identity::{Identity, InvalidIdentity, TrustDomain},
    name::Node,
};
use ambit_wire::debug_token;

use crate::{cluster::Cluster, config::Account};

/// Decides for which identity a certificate is signed.
pub fn entitled(
    cluster: &Cluster,
    trusted: &[Account],
    caller: &Caller,
    impersonated: Option<&str>,
) -> Result<Identity, Refusal> {
    let asked =
        impersonated.map(str::parse::<Identity>).transpose()?.unwrap_or_else(|| caller.identity.clone());
    if debug_token::is_reserved(&asked) {
        return Err(Refusal::Reserved(asked));
    }
    if asked == caller.identity {
        return Ok(asked);
    }
    let is_trusted = trusted.iter().any(|account| {
        account.namespace == caller.identity.namespace
            && account.service_account == caller.identity.service_account
    });
    // An account of that name in another trust domain is somebody else.
    let ours = &cluster.settings().trust_domain;
    if !is_trusted || caller.identity.trust_domain != *ours {
        return Err(Refusal::NotTrusted(caller.identity.clone()));
    }
    if asked.trust_domain != *ours {
        return Err(Refusal::ForeignTrustDomain { asked, ours: ours.clone() });
    }
    let Some(node) = &caller.node else { return Err(Refusal::Nowhere(caller.identity.clone())) };
    if cluster.runs_on(node, &asked.namespace, asked.service_account.as_str()) {
        Ok(asked)
    } else {
        Err(Refusal::NotThere { asked, node: node.clone() })
    }
}

/// Whoever proved who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Who.
    pub identity: Identity,
    /// On which node, where the credentials say so.
    pub node: Option<Node>,
}

/// Why a caller does not get the identity that it asks for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Its account may not speak for others.
    #[error(
        "impersonation authentication failed: {0} is not a trusted node account; add its namespace/account to --trusted-node-accounts"
    )]
    NotTrusted(Identity),
    /// What it asks for is no identity.
    #[error("impersonation authentication failed: {0}")]
    NotAnIdentity(#[from] InvalidIdentity),
    /// It signs debug tokens.
    #[error("impersonation authentication failed: {0} is for the controller itself")]
    Reserved(Identity),
    /// Others vouch for that identity.
    #[error(
        "impersonation authentication failed: {asked} is not of the trust domain {ours}, which is signed for here"
    )]
    ForeignTrustDomain {
        /// The identity.
        asked: Identity,
        /// The domain that is signed for.
        ours: TrustDomain,
    },
    /// It is not known where the caller is.
    #[error("impersonation authentication failed: the credentials of {0} do not say on which node it is")]
    Nowhere(Identity),
    /// No such pod on that node.
    #[error(
        "impersonation authentication failed: no pod that runs as {asked} is on node {node}; \
         check spec.nodeName and spec.serviceAccountName of the pod"
    )]
    NotThere {
        /// The identity.
        asked: Identity,
        /// The caller's node.
        node: Node,
    },
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use ambit_api::directory::read_text;

    use super::*;
    use crate::{
        cluster::object::{Parsed, parse},
        source::Event,
    };

    fn cluster(pods: &[(&str, &str, &str, &str)]) -> Cluster {
        let mut cluster = Cluster::new(crate::cluster::Settings::default());
        for (at, (namespace, account, node, phase)) in pods.iter().enumerate() {
            let text = format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: p{at}, namespace: {namespace}}}\n\
                 spec: {{nodeName: {node}, serviceAccountName: {account}}}\nstatus: {{phase: {phase}}}\n"
            );
            for document in read_text(Path::new("pods.yaml"), &text).objects {
                let Parsed::Object(pod) = parse(&document) else { panic!("{text}") };
                cluster.apply(Event::Upsert(pod));
            }
        }
        cluster
    }

    fn caller(account: &str, node: Option<&str>) -> Caller {
        let identity = Identity::new("cluster.local", "istio-system", account);
        Caller { identity, node: node.map(Node::from) }
    }

    fn of_shop(account: &str) -> String {
        Identity::new("cluster.local", "shop", account).to_string()
    }

    #[test]
    fn a_caller_gets_its_own_identity() {
        let cluster = cluster(&[]);
        for account in ["ztunnel", "waypoint"] {
            let caller = caller(account, None);
            assert_eq!(entitled(&cluster, &[], &caller, None), Ok(caller.identity.clone()));
            let by_name = caller.identity.to_string();
            assert_eq!(entitled(&cluster, &[], &caller, Some(&by_name)), Ok(caller.identity.clone()));
        }
    }

    #[test]
    fn nobody_gets_the_identity_that_signs_debug_tokens() {
        let reserved = debug_token::identity(&TrustDomain::default());
        // No pod can be written that has it.
        let cluster = cluster(&[]);
        let trusted = ["istio-system/ztunnel".parse().unwrap()];
        let by_name = reserved.to_string();
        let refused = Err(Refusal::Reserved(reserved.clone()));
        let tunnel = caller("ztunnel", Some("n1"));
        assert_eq!(entitled(&cluster, &trusted, &tunnel, Some(&by_name)), refused);
        let itself = Caller { identity: reserved, node: Some("n1".into()) };
        assert_eq!(entitled(&cluster, &trusted, &itself, None), refused);
        assert_eq!(entitled(&cluster, &trusted, &itself, Some(&by_name)), refused);
    }

    #[test]
    fn a_trusted_node_account_gets_what_runs_on_its_node() {
        let cluster = cluster(&[
            ("shop", "cart", "n1", "Running"),
            ("shop", "starting", "n1", "Pending"),
            ("shop", "done", "n1", "Succeeded"),
            ("shop", "broken", "n1", "Failed"),
            ("shop", "pay", "n2", "Running"),
            ("bank", "vault", "n1", "Running"),
            ("shop", "half", "n1", "Failed"),
            ("shop", "half", "n1", "Running"),
        ]);
        let trusted = ["istio-system/ztunnel".parse().unwrap()];
        let on_n1 = caller("ztunnel", Some("n1"));
        for (account, right) in [
            ("cart", true),
            ("starting", true),
            ("done", true), // only Failed is excepted (protocols 3.4)
            ("broken", false),
            ("half", true), // one pod of two is enough
            ("pay", false),
            ("vault", false), // runs there, but in another namespace
            ("nobody", false),
            ("", false),
        ] {
            let verdict = entitled(&cluster, &trusted, &on_n1, Some(&of_shop(account)));
            assert_eq!(verdict.is_ok(), right, "{account}: {verdict:?}");
        }
        let refusal = entitled(&cluster, &trusted, &on_n1, Some(&of_shop("pay"))).unwrap_err();
        assert!(matches!(refusal, Refusal::NotThere { .. }));
        let text = refusal.to_string();
        assert!(
            text.contains("impersonation") && text.contains("shop/sa/pay") && text.contains("n1"),
            "{text}"
        );
    }

    #[test]
    fn nobody_else_speaks_for_others() {
        let cluster = cluster(&[("shop", "cart", "n1", "Running")]);
        let trusted: [Account; 1] = ["istio-system/ztunnel".parse().unwrap()];
        let ask = |trusted: &[Account], caller: &Caller| {
            entitled(&cluster, trusted, caller, Some(&of_shop("cart")))
        };
        assert!(ask(&trusted, &caller("ztunnel", Some("n1"))).is_ok());
        assert!(matches!(ask(&trusted, &caller("waypoint", Some("n1"))), Err(Refusal::NotTrusted(_))));
        assert!(matches!(ask(&[], &caller("ztunnel", Some("n1"))), Err(Refusal::NotTrusted(_))));
        assert!(matches!(ask(&trusted, &caller("ztunnel", None)), Err(Refusal::Nowhere(_))));
        let mut foreign = caller("ztunnel", Some("n1"));
        foreign.identity.trust_domain = "elsewhere".into();
        assert!(matches!(ask(&trusted, &foreign), Err(Refusal::NotTrusted(_))));
        let mut namesake = caller("ztunnel", Some("n1"));
        namesake.identity.namespace = "shop".into();
        assert!(matches!(ask(&trusted, &namesake), Err(Refusal::NotTrusted(_))));
    }

    #[test]
    fn what_is_asked_must_be_an_identity_of_ours() {
        let cluster = cluster(&[("shop", "cart", "n1", "Running")]);
        let trusted = ["istio-system/ztunnel".parse().unwrap()];
        let on_n1 = caller("ztunnel", Some("n1"));
        for text in ["", "cart", "spiffe://cluster.local/ns/shop/sa/cart/", "spiffe://cluster.local/ns/shop"]
        {
            let verdict = entitled(&cluster, &trusted, &on_n1, Some(text));
            assert!(matches!(verdict, Err(Refusal::NotAnIdentity(_))), "{text:?}: {verdict:?}");
        }
        let verdict = entitled(&cluster, &trusted, &on_n1, Some("spiffe://elsewhere/ns/shop/sa/cart"));
        assert!(matches!(verdict, Err(Refusal::ForeignTrustDomain { .. })), "{verdict:?}");
    }
}
