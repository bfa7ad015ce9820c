//! The directory as its users see it: files in, objects and problems out.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::os::unix::fs::symlink;
use std::path::Path;

use ambit_api::directory::{Directory, DirectoryError, ObjectKey};
use serde_json::json;
use tempfile::TempDir;

fn write(dir: &TempDir, file: &str, text: &str) {
    let path = dir.path().join(file);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

fn pod(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{nodeName: n1}}\n"
    )
}

fn names(directory: &Directory) -> Vec<String> {
    directory.load().unwrap().objects.iter().map(|object| object.name.clone()).collect()
}

#[test]
fn objects_come_by_path_then_as_written() {
    let dir = TempDir::new().unwrap();
    write(&dir, "b.yaml", &format!("{}---\n{}", pod("b2"), pod("b1")));
    write(&dir, "a/z.yml", &pod("a"));
    write(&dir, "c.json", r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"c"}}"#);
    write(&dir, "README.md", "kind: [");
    write(&dir, ".hidden.yaml", "kind: [");
    let directory = Directory::open(dir.path()).unwrap();
    assert_eq!(names(&directory), ["a", "b2", "b1", "c"]);
    assert!(directory.load().unwrap().problems.is_empty());
}

#[test]
fn overlays_are_merged_in_the_order_of_their_writers_and_cannot_rename() {
    let dir = TempDir::new().unwrap();
    write(&dir, "pod.yaml", &pod("web"));
    let directory = Directory::open(dir.path()).unwrap();
    let key = ObjectKey::new("Pod", "shop", "web");
    directory.patch("lab", &key, &json!({"status": {"podIP": "10.0.0.1", "phase": "Running"}})).unwrap();
    directory
        .patch(
            "agent-n1",
            &key,
            &json!({"kind": "Node", "metadata": {"name": "evil", "annotations": {"x": "1"}}, "status": {"phase": "?"}}),
        )
        .unwrap();
    let loaded = directory.load().unwrap();
    assert!(loaded.problems.is_empty(), "{:?}", loaded.problems);
    let value = &loaded.objects[0].value;
    assert_eq!(value["status"], json!({"podIP": "10.0.0.1", "phase": "Running"}));
    assert_eq!(value["metadata"], json!({"name": "web", "namespace": "shop", "annotations": {"x": "1"}}));
    assert_eq!(value["kind"], "Pod");

    directory.unpatch("lab", &key).unwrap();
    directory.unpatch("lab", &key).unwrap();
    assert_eq!(directory.load().unwrap().objects[0].value["status"], json!({"phase": "?"}));
}

#[test]
fn an_overlay_without_an_object_is_ignored_and_a_bad_one_names_its_object() {
    let dir = TempDir::new().unwrap();
    write(&dir, "status/lab/Pod.shop.ghost.yaml", "status: {podIP: 10.0.0.9}\n");
    write(&dir, "status/lab/Pod.shop.web.yaml", "status: [\n");
    write(&dir, "status/odd.yaml", "a: 1\n");
    write(&dir, "pod.yaml", &pod("web"));
    let loaded = Directory::open(dir.path()).unwrap().load().unwrap();
    assert_eq!(loaded.objects.len(), 1);
    let keys: Vec<_> = loaded.problems.iter().map(|problem| problem.key.clone()).collect();
    let web = ObjectKey::new("Pod", "shop", "web");
    assert_eq!(keys, [Some(web.clone()), None]);
    assert!(loaded.stale.contains(&web) && !loaded.truncated);
}

#[test]
fn the_same_object_twice_is_told_with_both_places() {
    let dir = TempDir::new().unwrap();
    write(&dir, "a.yaml", &pod("web"));
    write(&dir, "b.yaml", &pod("web"));
    let loaded = Directory::open(dir.path()).unwrap().load().unwrap();
    assert_eq!(loaded.objects.len(), 1);
    assert!(loaded.objects[0].file.ends_with("a.yaml"));
    let text = loaded.problems[0].to_string();
    assert!(text.contains("b.yaml:1") && text.contains("a.yaml:1"), "{text}");
}

#[test]
fn links_work_inside_the_directory_as_in_a_mounted_config_map_and_never_lead_out() {
    let dir = TempDir::new().unwrap();
    let outside = TempDir::new().unwrap();
    write(&outside, "secret.yaml", &pod("secret"));
    write(&dir, "..2026_01/pod.yaml", &pod("web"));
    symlink("..2026_01", dir.path().join("..data")).unwrap();
    symlink("..data/pod.yaml", dir.path().join("pod.yaml")).unwrap();
    symlink(outside.path().join("secret.yaml"), dir.path().join("s.yaml")).unwrap();
    symlink(outside.path(), dir.path().join("folder")).unwrap();
    let directory = Directory::open(dir.path()).unwrap();
    assert_eq!(names(&directory), ["web"]);
    assert_eq!(directory.load().unwrap().problems.len(), 1);

    write(&dir, "..2026_02/pod.yaml", &pod("new"));
    std::fs::remove_file(dir.path().join("..data")).unwrap();
    symlink("..2026_02", dir.path().join("..data")).unwrap();
    assert_eq!(names(&directory), ["new"]);
}

#[test]
fn a_change_is_seen_however_quickly_it_follows() {
    let dir = TempDir::new().unwrap();
    let directory = Directory::open(dir.path()).unwrap();
    for n in 10..30 {
        write(&dir, "pod.yaml", &pod(&format!("p{n}")));
        assert_eq!(names(&directory), [format!("p{n}")]);
    }
}

#[test]
fn a_settled_file_is_remembered_until_it_changes_or_goes() {
    let dir = TempDir::new().unwrap();
    write(&dir, "pod.yaml", &pod("p1"));
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(60);
    let file = std::fs::File::options().write(true).open(dir.path().join("pod.yaml")).unwrap();
    file.set_modified(old).unwrap();
    let directory = Directory::open(dir.path()).unwrap();
    assert_eq!(names(&directory), ["p1"]);
    assert_eq!(names(&directory), ["p1"]);
    write(&dir, "pod.yaml", &pod("p2"));
    assert_eq!(names(&directory), ["p2"]);
    std::fs::remove_file(dir.path().join("pod.yaml")).unwrap();
    assert!(names(&directory).is_empty());
}

#[test]
fn what_is_too_long_or_not_text_is_a_problem_of_that_file_alone() {
    let dir = TempDir::new().unwrap();
    write(&dir, "ok.yaml", &pod("web"));
    write(&dir, "long.yaml", &"# x\n".repeat(1_100_000));
    std::fs::write(dir.path().join("bytes.yaml"), [0xff, 0xfe]).unwrap();
    let loaded = Directory::open(dir.path()).unwrap().load().unwrap();
    assert_eq!(loaded.objects.len(), 1);
    assert_eq!(loaded.problems.len(), 2);
    assert!(loaded.problems.iter().all(|problem| problem.line == 0 && !problem.remedy.is_empty()));
}

#[test]
fn writing_stays_inside_and_leaves_an_equal_file_untouched() {
    let dir = TempDir::new().unwrap();
    let directory = Directory::open(dir.path()).unwrap();
    let document = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}});
    let file = Path::new("nodes/n1.yaml");
    directory.put(file, &document).unwrap();
    let inode = |path: &Path| std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(path).unwrap());
    let before = inode(&dir.path().join(file));
    directory.put(file, &document).unwrap();
    assert_eq!(inode(&dir.path().join(file)), before);
    assert_eq!(names(&directory), ["n1"]);
    for bad in ["../x.yaml", "/etc/x.yaml", "a/../../x.yaml", ""] {
        assert!(
            matches!(directory.put(Path::new(bad), &document), Err(DirectoryError::BadName { .. })),
            "{bad}"
        );
    }
    directory.remove(file).unwrap();
    assert!(names(&directory).is_empty());
}

#[test]
fn a_missing_directory_says_what_to_do() {
    let error = Directory::open("no/such/place").unwrap_err().to_string();
    assert!(error.contains("no/such/place") && error.contains("create it"), "{error}");
}
