//! The directory as a source: what changes is told, what is wrong takes nothing away.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::time::Duration;

use ambit_api::directory::{Directory, ObjectKey};
use ambit_controller::cluster::object::{Kind, Object};
use ambit_controller::source::Event;
use ambit_controller::source::directory::{State, run};
use serde_json::json;
use tempfile::TempDir;
use tokio::sync::{mpsc, oneshot};

struct Fixture {
    dir: TempDir,
    directory: Directory,
    state: State,
}

impl Fixture {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let directory = Directory::open(dir.path()).unwrap();
        Self { dir, directory, state: State::default() }
    }

    fn write(&self, file: &str, text: &str) {
        std::fs::write(self.dir.path().join(file), text).unwrap();
    }

    fn erase(&self, file: &str) {
        std::fs::remove_file(self.dir.path().join(file)).unwrap();
    }

    /// What is told, in words.
    fn look(&mut self) -> Vec<String> {
        let word = |event: &Event| match event {
            Event::Upsert(object) => format!("+{}", object.key()),
            Event::Delete(key) => format!("-{key}"),
            Event::Synced => "synced".to_owned(),
        };
        self.state.digest(self.directory.load().unwrap()).iter().map(word).collect()
    }

    fn problems(&self) -> Vec<String> {
        self.state.problems().map(ToString::to_string).collect()
    }
}

fn service(name: &str, port: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: {port}}}]}}\n---\n"
    )
}

#[test]
fn the_first_look_tells_everything_and_the_next_only_what_changed() {
    let mut fixture = Fixture::new();
    fixture.write("a.yaml", &(service("a", 80) + &service("b", 80)));
    assert_eq!(fixture.look(), ["+Service default/a", "+Service default/b", "synced"]);
    assert_eq!(fixture.look(), Vec::<String>::new());
    fixture.write("a.yaml", &(service("a", 81) + &service("c", 80)));
    assert_eq!(fixture.look(), ["-Service default/b", "+Service default/a", "+Service default/c"]);
    fixture.erase("a.yaml");
    assert_eq!(fixture.look(), ["-Service default/a", "-Service default/c"]);
}

#[test]
fn an_object_may_move_to_another_file() {
    let mut fixture = Fixture::new();
    fixture.write("a.yaml", &service("a", 80));
    fixture.look();
    fixture.erase("a.yaml");
    fixture.write("b.yaml", &service("a", 80));
    assert_eq!(fixture.look(), Vec::<String>::new());
}

#[test]
fn a_bad_field_leaves_the_last_good_object_and_all_others() {
    let mut fixture = Fixture::new();
    fixture.write("a.yaml", &(service("a", 80) + &service("b", 80)));
    fixture.look();
    fixture.write("a.yaml", &(service("a", 0) + &service("b", 81)));
    assert_eq!(fixture.look(), ["+Service default/b"]);
    let problems = fixture.problems();
    assert!(
        problems[0].contains("a.yaml:1: Service default/a: spec.ports[].port: 0 is not a port"),
        "{problems:?}"
    );
    assert!(problems[0].contains("stays in force"));
    assert_eq!(fixture.look(), Vec::<String>::new());
    assert_eq!(fixture.problems().len(), 1, "it is still wrong");
    fixture.write("a.yaml", &(service("a", 82) + &service("b", 81)));
    assert_eq!(fixture.look(), ["+Service default/a"]);
    assert!(fixture.problems().is_empty());
}

#[test]
fn a_file_that_is_no_yaml_any_more_keeps_what_it_last_said() {
    let mut fixture = Fixture::new();
    fixture.write("a.yaml", &(service("a", 80) + &service("b", 80)));
    fixture.write("c.yaml", &service("c", 80));
    fixture.look();
    fixture.write("a.yaml", &(service("a", 81) + "kind: [\n---\n"));
    fixture.erase("c.yaml");
    assert_eq!(fixture.look(), ["-Service default/c", "+Service default/a"]);
    fixture.write("a.yaml", &service("a", 81));
    assert_eq!(fixture.look(), ["-Service default/b"]);
}

#[test]
fn what_was_never_good_is_not_used_unless_it_is_a_policy() {
    let mut fixture = Fixture::new();
    let policy = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p}\nspec: {action: NO}\n---\n";
    fixture.write("a.yaml", &(service("a", 0) + policy));
    assert_eq!(fixture.look(), ["+AuthorizationPolicy default/p", "synced"]);
    assert_eq!(fixture.problems().len(), 2);
    // Its scope can be read now, though the rest cannot.
    fixture.write("a.yaml", &policy.replace("{action", "{selector: {matchLabels: {a: b}}, action"));
    assert_eq!(fixture.look(), ["+AuthorizationPolicy default/p"]);
    fixture.write("a.yaml", &policy.replace("NO", "DENY"));
    assert_eq!(fixture.look(), ["+AuthorizationPolicy default/p"]);
    fixture.write("a.yaml", policy);
    assert_eq!(fixture.look(), Vec::<String>::new(), "the last good one stays");
}

#[test]
fn an_overlay_that_cannot_be_read_leaves_the_object_as_it_was() {
    let mut fixture = Fixture::new();
    fixture.write("a.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n");
    fixture
        .directory
        .patch("lab", &ObjectKey::new("Pod", "default", "a"), &json!({"status": {"podIP": "10.0.0.1"}}))
        .unwrap();
    fixture.look();
    fixture.write("status/lab/Pod.default.a.yaml", "status: [");
    assert_eq!(fixture.look(), Vec::<String>::new());
    fixture.write("status/lab/Pod.default.a.yaml", "status: {podIP: 10.0.0.2}");
    assert_eq!(fixture.look(), ["+Pod default/a"]);
}

#[test]
fn unknown_kinds_and_versions_are_passed_over() {
    let mut fixture = Fixture::new();
    fixture.write("a.yaml", "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\n---\napiVersion: v2\nkind: Pod\nmetadata: {name: a}\n");
    assert_eq!(fixture.look(), ["synced"]);
    assert!(fixture.problems().is_empty());
}

#[test]
fn every_version_of_istios_groups_is_read() {
    let mut fixture = Fixture::new();
    let text: String = ["networking.istio.io/v1", "networking.istio.io/v1beta1", "networking.istio.io/v1alpha3"]
        .iter()
        .enumerate()
        .map(|(n, version)| {
            format!("apiVersion: {version}\nkind: ServiceEntry\nmetadata: {{name: e{n}}}\nspec: {{hosts: [x.com], unknown: 1}}\n---\n")
        })
        .collect();
    fixture.write("a.yaml", &text);
    assert_eq!(fixture.look().len(), 4);
}

/// The whole source, files to events, without waiting for the periodic look.
#[tokio::test]
async fn a_written_file_is_told_soon() {
    let dir = TempDir::new().unwrap();
    std::fs::write(dir.path().join("a.yaml"), service("a", 80)).unwrap();
    let (sender, mut events) = mpsc::channel(16);
    let (stop, stopped) = oneshot::channel::<()>();
    let source = run(Directory::open(dir.path()).unwrap(), sender, async move {
        let _ = stopped.await;
    });
    let story = async {
        let soon = Duration::from_secs(5);
        assert!(matches!(events.recv().await, Some(Event::Upsert(Object::Service(_)))));
        assert_eq!(events.recv().await, Some(Event::Synced));
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        std::fs::write(dir.path().join("sub/b.yaml"), service("b", 80)).unwrap();
        let told =
            tokio::time::timeout(soon, events.recv()).await.expect("told before the periodic look").unwrap();
        assert!(matches!(&told, Event::Upsert(object) if object.key().name.name == "b"), "{told:?}");
        std::fs::remove_file(dir.path().join("a.yaml")).unwrap();
        let told =
            tokio::time::timeout(soon, events.recv()).await.expect("told before the periodic look").unwrap();
        assert!(matches!(&told, Event::Delete(key) if key.kind == Kind::Service), "{told:?}");
        drop(stop);
        assert_eq!(tokio::time::timeout(soon, events.recv()).await.expect("the source ends"), None);
    };
    tokio::join!(source, story);
}
