//! What a page of the documentation holds in its fences: YAML that a story applies, as a reader would.

/// A page, as it is written.
#[derive(Debug, Clone, Copy)]
pub struct Page(pub &'static str);

impl Page {
    /// The contents of its fences of one language, in their order.
    pub fn fenced(self, language: &str) -> Vec<String> {
        let mut lines = self.0.lines();
        let mut found = Vec::new();
        while let Some(line) = lines.next() {
            let Some(of) = line.strip_prefix("```") else { continue };
            let inside = lines.by_ref().take_while(|line| !line.starts_with("```"));
            let text: String = inside.map(|line| format!("{line}\n")).collect();
            if of == language {
                found.push(text);
            }
        }
        found
    }

    /// The value of `name=value` on a line of its own; empty when there is none.
    pub fn value(self, name: &str) -> &'static str {
        let of_name = |line: &'static str| line.strip_prefix(name)?.strip_prefix('=');
        self.0.lines().find_map(of_name).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fences_are_told_by_their_language() {
        let page =
            Page("a\n```yaml\nb: 1\n```\n```console\n$ c\n```\n```yaml\nd: 2\ne: 3\n```\nname=value\n");
        assert_eq!(page.fenced("yaml"), ["b: 1\n", "d: 2\ne: 3\n"]);
        assert_eq!(page.fenced("console"), ["$ c\n"]);
        assert!(page.fenced("text").is_empty());
        assert_eq!((page.value("name"), page.value("other")), ("value", ""));
    }
}
