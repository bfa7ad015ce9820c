//! What a pod may mean by a name: Kubernetes' short forms, and what its search list made of it.

/// A name that a question may mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Alias {
    /// The name.
    pub(super) name: String,
    /// The question without the search domain that the client appended, when one was taken off.
    pub(super) stripped: Option<String>,
}

/// The names that a client in `namespace` may mean by `name`, best first. All in lower case, without
/// a final dot.
pub(super) fn aliases(name: &str, namespace: &str, domain: &str) -> Vec<Alias> {
    let mut all = Vec::new();
    add(&mut all, name, None, namespace, domain);
    for search in search_list(namespace, domain) {
        let stripped = name.strip_suffix(&search).and_then(|rest| rest.strip_suffix('.'));
        if let Some(stripped) = stripped.filter(|rest| !rest.is_empty()) {
            add(&mut all, stripped, Some(stripped), namespace, domain);
        }
    }
    all
}

/// A name and, one by one with fewer labels, the wildcards that cover it.
pub(super) fn with_wildcards(name: &str) -> impl Iterator<Item = (String, IsWildcard)> + '_ {
    let parents = std::iter::successors(Some(name), |name| name.split_once('.').map(|(_, parent)| parent));
    let wildcards = parents.skip(1).map(|parent| (format!("*.{parent}"), IsWildcard(true)));
    std::iter::once((name.to_owned(), IsWildcard(false))).chain(wildcards)
}

/// Whether a service was found by a wildcard that covers the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct IsWildcard(pub(super) bool);

/// What the kubelet writes into the pod's `resolv.conf`.
fn search_list(namespace: &str, domain: &str) -> [String; 3] {
    [format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.to_owned()]
}

fn add(all: &mut Vec<Alias>, name: &str, stripped: Option<&str>, namespace: &str, domain: &str) {
    let alias = |name: String| Alias { name, stripped: stripped.map(str::to_owned) };
    all.push(alias(name.to_owned()));
    all.extend(expansions(name, namespace, domain).into_iter().map(alias));
}

/// The full names that Kubernetes' short forms stand for.
fn expansions(name: &str, namespace: &str, domain: &str) -> Vec<String> {
    let labels: Vec<_> = name.split('.').collect();
    let ends_in_svc = labels.last().is_some_and(|last| *last == "svc");
    match labels.len() {
        1 => vec![format!("{name}.{namespace}.svc.{domain}")],
        2 => vec![format!("{name}.svc.{domain}"), format!("{name}.{namespace}.svc.{domain}")],
        3 | 4 if ends_in_svc => vec![format!("{name}.{domain}")],
        3 => vec![format!("{name}.svc.{domain}")],
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(name: &str) -> Vec<String> {
        expansions(name, "shop", "cluster.local")
    }

    #[test]
    fn short_forms_stand_for_full_names() {
        let cases: [(&str, &[&str]); 8] = [
            ("web", &["web.shop.svc.cluster.local"]),
            ("web.data", &["web.data.svc.cluster.local", "web.data.shop.svc.cluster.local"]),
            ("web.data.svc", &["web.data.svc.cluster.local"]),
            ("pod.web.data", &["pod.web.data.svc.cluster.local"]),
            ("pod.web.data.svc", &["pod.web.data.svc.cluster.local"]),
            ("a.b.c.d", &[]),
            ("web.shop.svc.cluster.local", &[]),
            ("a.b.c.d.e.svc", &[]),
        ];
        for (name, expected) in cases {
            assert_eq!(expanded(name), expected, "{name}");
        }
    }

    #[test]
    fn search_domains_are_taken_off_the_longest_first() {
        let all: Vec<_> = aliases("www.example.com.shop.svc.cluster.local", "shop", "cluster.local")
            .into_iter()
            .map(|alias| (alias.name, alias.stripped))
            .collect();
        let stripped = |name: &str, of: &str| (name.to_owned(), Some(of.to_owned()));
        assert_eq!(
            all,
            [
                ("www.example.com.shop.svc.cluster.local".to_owned(), None),
                stripped("www.example.com", "www.example.com"),
                stripped("www.example.com.svc.cluster.local", "www.example.com"),
                stripped("www.example.com.shop", "www.example.com.shop"),
                stripped("www.example.com.shop.svc", "www.example.com.shop.svc"),
            ]
        );
    }

    #[test]
    fn a_search_domain_by_itself_is_not_taken_off() {
        let all = aliases("svc.cluster.local", "shop", "cluster.local");
        assert!(all.iter().all(|alias| !alias.name.is_empty()), "{all:?}");
        assert_eq!(
            aliases("cluster.local", "shop", "cluster.local").first().map(|a| a.name.as_str()),
            Some("cluster.local")
        );
        // Not at a label's boundary.
        assert!(
            aliases("xcluster.local", "shop", "cluster.local").iter().all(|alias| alias.stripped.is_none())
        );
    }

    #[test]
    fn wildcards_cover_a_name_from_the_nearest() {
        let all: Vec<_> = with_wildcards("a.b.c").map(|(name, _)| name).collect();
        assert_eq!(all, ["a.b.c", "*.b.c", "*.c"]);
    }
}
