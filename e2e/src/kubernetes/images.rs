//! The images that a cluster has from the start, and those of the mesh.

use std::path::Path;

use super::image::Image;

/// What a pod is called in, and can be asked to do: the lab's application, `curl`, and a shell with the usual tools.
pub const APP: &str = "localhost/ambit/app:dev";
/// What holds a pod's namespaces open.
pub const PAUSE: &str = "localhost/ambit/pause:dev";
/// The cluster's DNS.
pub const DNS: &str = "localhost/ambit/coredns:dev";

const SHELL: [&str; 34] = [
    "sh", "bash", "cat", "cp", "cut", "date", "dd", "echo", "env", "false", "getent", "grep", "head",
    "hostname", "id", "ls", "mkdir", "mv", "printf", "rm", "sed", "seq", "sleep", "sort", "stat", "tail",
    "test", "timeout", "touch", "true", "uname", "wc", "curl", "ip",
];

/// Those without which nothing starts.
pub fn first(programs: &Path) -> anyhow::Result<Vec<Image>> {
    let pause = Image::new(PAUSE).program(&programs.join("pause"), "/pause")?;
    // It binds to port 53, which its deployment grants to nobody but root.
    let dns = Image::new(DNS).program(&programs.join("coredns"), "/coredns")?.accounts().user("0:0");
    Ok(vec![pause.entrypoint(&["/pause"]), dns.entrypoint(&["/coredns"])])
}

/// The application of the stories, from the folder of built programs.
pub fn app(binaries: &Path) -> anyhow::Result<Image> {
    let image = Image::new(APP).accounts().system_programs(&SHELL)?;
    let image = image.program(&binaries.join("ambit-lab-app"), "/usr/bin/ambit-lab-app")?;
    Ok(image.entrypoint(&["/usr/bin/ambit-lab-app"]))
}

/// What the conformance tests of Gateway API run in pods, from the folder of built programs, by the name under which they
/// ask for it: the lab's application takes the same arguments and prints the same lines.
pub fn conformance(name: &str, binaries: &Path) -> anyhow::Result<Image> {
    let image = Image::new(name).accounts().system_programs(&["sh"])?;
    let image = image.program(&binaries.join("ambit-lab-app"), "/usr/bin/ambit-lab-app")?;
    // The tests start a program of this name in a pod.
    let client = "#!/usr/bin/sh\nexec /usr/bin/ambit-lab-app suite-client \"$@\"\n";
    let image = image.file("/usr/bin/client", client, 0o755);
    Ok(image.entrypoint(&["/usr/bin/ambit-lab-app", "suite-server"]))
}

/// The images of the mesh (`localhost/ambit/{controller,cni,ztunnel,waypoint}:dev`), from the folder of built programs.
pub fn mesh(binaries: &Path) -> anyhow::Result<Vec<Image>> {
    let one = |name: &str| Image::new(&format!("localhost/ambit/{name}:dev")).accounts();
    let controller = one("controller").program(&binaries.join("controller"), "/usr/local/bin/controller")?;
    let tunnel = one("ztunnel").program(&binaries.join("ztunnel"), "/usr/local/bin/ztunnel")?;
    let waypoint = one("waypoint").program(&binaries.join("waypoint"), "/usr/local/bin/waypoint")?;
    let agent = one("cni")
        .program(&binaries.join("ambit-cni-agent"), "/usr/local/bin/ambit-cni-agent")?
        .program(&binaries.join("ambit-cni"), "/usr/local/bin/ambit-cni")?
        .system_programs(&["nft", "ip", "nsenter"])?;
    Ok(vec![
        controller.entrypoint(&["/usr/local/bin/controller"]),
        agent.user("0:0").entrypoint(&["/usr/local/bin/ambit-cni-agent"]),
        tunnel.entrypoint(&["/usr/local/bin/ztunnel"]),
        waypoint.entrypoint(&["/usr/local/bin/waypoint"]),
    ])
}
