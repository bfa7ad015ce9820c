//! Who a workload is: a SPIFFE identity, and the trust domain that vouches for it.

use std::{fmt, str::FromStr};

use serde::{Serialize, Serializer};

use crate::name::{Namespace, ServiceAccount};

/// The domain used where a control plane names none (protocols 2.1).
pub const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";

const SCHEME: &str = "spiffe://";

/// `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`, exactly these segments.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    /// Whose word it is.
    pub trust_domain: TrustDomain,
    /// The namespace of the service account.
    pub namespace: Namespace,
    /// The service account.
    pub service_account: ServiceAccount,
}

impl Identity {
    /// The identity of `service_account` in `namespace`, vouched for by `trust_domain`.
    pub fn new(
        trust_domain: impl Into<TrustDomain>,
        namespace: impl Into<Namespace>,
        service_account: impl Into<ServiceAccount>,
    ) -> Self {
        Self {
            trust_domain: trust_domain.into(),
            namespace: namespace.into(),
            service_account: service_account.into(),
        }
    }

    /// The identity as policies spell principals: without the scheme.
    pub fn principal(&self) -> impl fmt::Display + '_ {
        Principal(self)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}", Principal(self))
    }
}

struct Principal<'a>(&'a Identity);

impl fmt::Display for Principal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Identity { trust_domain, namespace, service_account } = self.0;
        write!(f, "{trust_domain}/ns/{namespace}/sa/{service_account}")
    }
}

/// Why a text is not an identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not of the form spiffe://<trust domain>/ns/<namespace>/sa/<service account>")]
pub struct InvalidIdentity(pub String);

impl FromStr for Identity {
    type Err = InvalidIdentity;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let segments = || {
            let mut segments = text.strip_prefix(SCHEME)?.split('/');
            let mut next = || segments.next().filter(|segment| !segment.is_empty());
            let trust_domain = next()?;
            next().filter(|&s| s == "ns")?;
            let namespace = next()?;
            next().filter(|&s| s == "sa")?;
            let service_account = next()?;
            segments.next().is_none().then(|| Self::new(trust_domain, namespace, service_account))
        };
        segments().ok_or_else(|| InvalidIdentity(text.to_owned()))
    }
}

impl Serialize for Identity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The authority behind identities, such as `cluster.local`. Never empty: empty means the default.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct TrustDomain(std::sync::Arc<str>);

impl TrustDomain {
    /// The domain as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is the domain used where none is named.
    pub fn is_default(&self) -> bool {
        self.as_str() == DEFAULT_TRUST_DOMAIN
    }

    /// The domain made of this very allocation, which must not be empty.
    pub fn shared(text: std::sync::Arc<str>) -> Self {
        if text.is_empty() { Self::default() } else { Self(text) }
    }
}

impl Default for TrustDomain {
    fn default() -> Self {
        Self(DEFAULT_TRUST_DOMAIN.into())
    }
}

impl From<&str> for TrustDomain {
    fn from(text: &str) -> Self {
        if text.is_empty() { Self::default() } else { Self(text.into()) }
    }
}

impl From<String> for TrustDomain {
    fn from(text: String) -> Self {
        text.as_str().into()
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(td in "[a-z.]{1,12}", ns in "[a-z0-9-]{1,12}", sa in "[a-z0-9-]{1,12}") {
            let identity = Identity::new(td.as_str(), ns.as_str(), sa.as_str());
            prop_assert_eq!(identity.to_string().parse(), Ok(identity));
        }

        #[test]
        fn nothing_else_is_read(text in "\\PC*") {
            if let Ok(identity) = text.parse::<Identity>() {
                prop_assert_eq!(identity.to_string(), text);
            }
        }
    }

    #[test]
    fn near_misses_are_refused() {
        for text in [
            "",
            "spiffe://",
            "https://td/ns/a/sa/b",
            "spiffe://td/ns/a",
            "spiffe://td/ns/a/sa/",
            "spiffe:///ns/a/sa/b",
            "spiffe://td/sa/a/ns/b",
            "spiffe://td/ns/a/sa/b/",
            "spiffe://td/ns/a/sa/b/c",
            "SPIFFE://td/ns/a/sa/b",
        ] {
            assert!(text.parse::<Identity>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_empty_trust_domain_is_the_default_one() {
        assert_eq!(TrustDomain::from(""), TrustDomain::default());
    }
}
