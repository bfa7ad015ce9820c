//! The CNI plugin: the last in the chain of plugins that make a pod's network.
//!
//! When a pod is added it tells the node's agent, waits until the pod is captured, and passes on what the
//! plugins before it made. A pod that belongs to the mesh does not start without; whether it belongs, the
//! agent alone knows, so while no agent answers no pod starts at all, but for the mesh's own tunnels and
//! controllers, and in the namespaces without which the node would never get an agent. Everything else a
//! runtime may ask has nothing to do with the mesh.

use std::{
    fmt,
    io::{self, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use serde::Deserialize;
use serde_json::{Value, json};

use crate::message::{Arrival, Ip, Network, PATH, Sorry, UNDECIDED, Welcome};

/// The versions of the specification whose results look as we read them.
pub const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// How long the agent may take when the configuration does not say: twice what it allows itself, and half of
/// what kubelet allows a runtime.
const PATIENCE: u64 = 15;

/// What the mesh's own pods are called, in its own namespace: those of DaemonSet `ztunnel` and of Deployment
/// `ambit-controller`, with a revision or without. The agent's use the node's network, so no plugin is asked about them.
/// A runtime tells us no more than names; but whoever may make a pod there may run it as the tunnel, and is whom he likes.
const OWN: [&str; 2] = ["ztunnel-", "ambit-controller-"];

/// Longer answers are not the agent's.
const LONGEST_ANSWER: u64 = 64 * 1024;

/// A configuration with the results of the plugins before us is a few pages.
const LONGEST_INPUT: u64 = 4 * 1024 * 1024;

/// What the runtime says in the environment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment {
    /// `CNI_COMMAND`.
    pub command: String,
    /// `CNI_NETNS`.
    pub netns: String,
    /// `CNI_ARGS`.
    pub arguments: String,
}

/// What the plugin's entry in the chain says, and what the runtime adds.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Configuration {
    #[serde(default)]
    cni_version: String,
    #[serde(default, rename = "agent_socket")]
    agent_socket: PathBuf,
    #[serde(default, rename = "exclude_namespaces")]
    exclude_namespaces: Vec<String>,
    #[serde(default, rename = "system_namespace")]
    system_namespace: String,
    #[serde(default, rename = "timeout_seconds")]
    timeout_seconds: Option<u64>,
    #[serde(default)]
    prev_result: Option<Value>,
}

/// A pod as kubelet names it, in `CNI_ARGS`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodArguments {
    namespace: String,
    name: String,
    uid: Option<String>,
}

/// What to do, having read everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Task {
    /// Print this; nothing else is needed.
    Say(Value),
    /// Say nothing.
    Nothing,
    /// Tell the agent, and print this if the pod may start.
    Announce {
        /// The pod.
        arrival: Arrival,
        /// The result of the plugins before us.
        result: Value,
        /// Whether the pod starts even if nobody answers.
        exempt: bool,
    },
}

/// A failure as the specification wants it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    code: u32,
    message: String,
}

/// Codes of the specification.
const INCOMPATIBLE_VERSION: u32 = 1;
const BAD_ENVIRONMENT: u32 = 4;
const IO: u32 = 5;
const UNDECODABLE: u32 = 6;
const BAD_CONFIGURATION: u32 = 7;
const TRY_AGAIN: u32 = 11;

/// Why nobody answered.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Unanswered {
    /// There is no agent, or it does not speak.
    Unreachable(String),
    /// It does not know whether the pod belongs.
    Undecided(String),
    /// The pod belongs, and could not be captured.
    Refused(String),
}

/// The whole life of the process: what to print, and whether it is a failure.
pub fn run(environment: &Environment, input: impl io::Read) -> (Option<Value>, bool) {
    let mut text = String::new();
    let read = input.take(LONGEST_INPUT).read_to_string(&mut text);
    let version =
        serde_json::from_str::<Configuration>(&text).map(|read| read.cni_version).unwrap_or_default();
    let outcome = read
        .map_err(|error| Failure { code: IO, message: format!("cannot read the configuration: {error}") })
        .and_then(|_| decide(environment, &text));
    let outcome = match outcome {
        Ok(Task::Say(value)) => Ok(Some(value)),
        Ok(Task::Nothing) => Ok(None),
        Ok(Task::Announce { arrival, result, exempt }) => {
            let configuration = Configuration::read(&text).unwrap_or_default();
            announce(&configuration, &arrival, exempt).map(|()| Some(result))
        }
        Err(failure) => Err(failure),
    };
    match outcome {
        Ok(said) => (said, false),
        Err(failure) => (Some(failure.json(&version)), true),
    }
}

/// What the runtime wants of us. Pure.
pub fn decide(environment: &Environment, input: &str) -> Result<Task, Failure> {
    let failure = |code, message: String| Err(Failure { code, message });
    let configuration = Configuration::read(input);
    match environment.command.as_str() {
        "VERSION" => {
            let version = configuration.map(|read| read.cni_version).unwrap_or_default();
            let version = if version.is_empty() { "1.0.0".to_owned() } else { version };
            Ok(Task::Say(json!({"cniVersion": version, "supportedVersions": VERSIONS})))
        }
        // A network that is taken down needs nothing from us: the agent hears of the pod's end. An agent that is
        // away must keep nobody from ending.
        "DEL" | "GC" => Ok(Task::Nothing),
        // The agent's absence is no reason to declare the node's whole network unfit: pods that run go on, and
        // pods of the system must be able to start.
        "STATUS" => Ok(Task::Nothing),
        "CHECK" => match configuration {
            Ok(_) => Ok(Task::Nothing),
            Err(error) => failure(UNDECODABLE, format!("the configuration cannot be read: {error}")),
        },
        "ADD" => match configuration {
            Ok(configuration) => add(environment, &configuration),
            Err(error) => failure(UNDECODABLE, format!("the configuration cannot be read: {error}")),
        },
        other => failure(
            BAD_ENVIRONMENT,
            format!("CNI_COMMAND is {other:?}; it is one of ADD, DEL, CHECK, VERSION, GC and STATUS"),
        ),
    }
}

fn add(environment: &Environment, configuration: &Configuration) -> Result<Task, Failure> {
    let failure = |code, message: String| Err(Failure { code, message });
    let Configuration { cni_version, exclude_namespaces, system_namespace, prev_result, .. } = configuration;
    if !VERSIONS.contains(&cni_version.as_str()) {
        let known = VERSIONS.join(", ");
        return failure(INCOMPATIBLE_VERSION, format!("cniVersion is {cni_version:?}; known are {known}"));
    }
    let Some(result) = prev_result.clone() else {
        return failure(
            BAD_CONFIGURATION,
            "there is no prevResult; ambit-cni makes no network, and stands after the plugin that does"
                .to_owned(),
        );
    };
    let Some(pod) = PodArguments::parse(&environment.arguments) else {
        // Not kubelet's: no pod, so no member of the mesh.
        return Ok(Task::Say(result));
    };
    if exclude_namespaces.contains(&pod.namespace) {
        return Ok(Task::Say(result));
    }
    if environment.netns.is_empty() {
        return failure(
            BAD_ENVIRONMENT,
            "CNI_NETNS is empty; it names the pod's network namespace".to_owned(),
        );
    }
    let arrival = Arrival {
        netns: environment.netns.clone(),
        pod_name: pod.name,
        pod_uid: pod.uid,
        ips: addresses(&result),
        pod_namespace: pod.namespace,
    };
    let exempt = is_own(&arrival, system_namespace);
    Ok(Task::Announce { arrival, result, exempt })
}

/// Whether the mesh itself needs the pod. They are no members, so nothing of theirs would go out uncaptured.
fn is_own(arrival: &Arrival, system_namespace: &str) -> bool {
    arrival.pod_namespace == system_namespace && OWN.iter().any(|name| arrival.pod_name.starts_with(name))
}

impl Configuration {
    /// An object, and nothing that merely could be read as one.
    fn read(text: &str) -> serde_json::Result<Self> {
        let fields: serde_json::Map<String, Value> = serde_json::from_str(text)?;
        serde_json::from_value(Value::Object(fields))
    }
}

impl PodArguments {
    /// From `K8S_POD_NAMESPACE=…;K8S_POD_NAME=…;…`.
    pub fn parse(arguments: &str) -> Option<Self> {
        let find = |key: &str| {
            let mut pairs = arguments.split(';').filter_map(|pair| pair.split_once('='));
            let value = pairs.find(|(name, _)| name.trim() == key)?.1.trim();
            (!value.is_empty()).then(|| value.to_owned())
        };
        Some(Self {
            namespace: find("K8S_POD_NAMESPACE")?,
            name: find("K8S_POD_NAME")?,
            uid: find("K8S_POD_UID"),
        })
    }
}

/// The pod's addresses. Those of interfaces that stayed on the node are not.
fn addresses(result: &Value) -> Vec<Ip> {
    let on_node = |index: &Value| {
        let sandbox =
            result.get("interfaces").and_then(|all| all.get(usize::try_from(index.as_u64()?).ok()?));
        Some(sandbox?.get("sandbox").and_then(Value::as_str).unwrap_or_default().is_empty())
    };
    let listed = result.get("ips").and_then(Value::as_array).into_iter().flatten();
    let ip = |ip: &Value| {
        let interface = ip.get("interface").filter(|index| !index.is_null());
        if interface.and_then(on_node) == Some(true) {
            return None;
        }
        let address = Network::parse(ip.get("address")?.as_str()?)?;
        let interface = interface.and_then(Value::as_u64).and_then(|index| u32::try_from(index).ok());
        Some(Ip { interface, address })
    };
    listed.filter_map(ip).collect()
}

/// Has the agent capture the pod. It is an error if the pod may not start.
fn announce(configuration: &Configuration, arrival: &Arrival, exempt: bool) -> Result<(), Failure> {
    let limit = Duration::from_secs(configuration.timeout_seconds.unwrap_or(PATIENCE));
    let socket = &configuration.agent_socket;
    let pod = format!("{}/{}", arrival.pod_namespace, arrival.pod_name);
    match ask(socket, arrival, limit) {
        Ok(_) => Ok(()),
        // A tunnel is replaced, and a controller comes back, also while the agent is away.
        Err(Unanswered::Unreachable(_) | Unanswered::Undecided(_)) if exempt => Ok(()),
        Err(Unanswered::Unreachable(why)) => Err(Failure {
            code: TRY_AGAIN,
            message: format!(
                "pod {pod} may belong to the mesh, and the node's agent cannot be asked at {}: {why}; is the DaemonSet \
                 ambit-cni-node running on this node? The pod starts as soon as it is",
                socket.display()
            ),
        }),
        Err(Unanswered::Undecided(why)) => Err(Failure {
            code: TRY_AGAIN,
            message: format!(
                "the node's agent cannot tell whether pod {pod} belongs to the mesh: {why}; it is asked again"
            ),
        }),
        Err(Unanswered::Refused(why)) => {
            Err(Failure { code: TRY_AGAIN, message: format!("pod {pod} cannot be captured yet: {why}") })
        }
    }
}

/// One question to the agent, within a time that holds for all of it, whatever the agent does.
fn ask(socket: &Path, arrival: &Arrival, limit: Duration) -> Result<Welcome, Unanswered> {
    let (sender, answer) = mpsc::channel();
    let (socket, arrival) = (socket.to_owned(), arrival.clone());
    let unreachable = |error: &dyn fmt::Display| Unanswered::Unreachable(error.to_string());
    thread::Builder::new()
        .name("ask".to_owned())
        .spawn(move || {
            // Nobody waits any more when it is too late.
            let _ = sender.send(exchange(&socket, &arrival, limit));
        })
        .map_err(|error| unreachable(&error))?;
    match answer.recv_timeout(limit) {
        Ok(Ok((200, body))) => serde_json::from_str(&body)
            .map_err(|_| Unanswered::Unreachable("what listens there is not the agent".to_owned())),
        Ok(Ok((status, body))) => match serde_json::from_str::<Sorry>(&body) {
            Ok(Sorry { error }) if status == UNDECIDED => Err(Unanswered::Undecided(error)),
            Ok(Sorry { error }) => Err(Unanswered::Refused(error)),
            Err(_) => Err(Unanswered::Unreachable(format!("what listens there answers {status}"))),
        },
        Ok(Err(error)) => Err(unreachable(&error)),
        Err(_) => Err(Unanswered::Unreachable(format!("no answer within {limit:?}"))),
    }
}

fn exchange(socket: &Path, arrival: &Arrival, limit: Duration) -> io::Result<(u16, String)> {
    let end = Instant::now() + limit;
    let mut stream = UnixStream::connect(socket)?;
    stream.set_write_timeout(Some(limit))?;
    let body = serde_json::to_string(arrival)?;
    write!(
        stream,
        "POST {PATH} HTTP/1.1\r\nhost: agent\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )?;
    let left = end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    stream.set_read_timeout(Some(left))?;
    let mut answer = String::new();
    stream.take(LONGEST_ANSWER).read_to_string(&mut answer)?;
    parse(&answer)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the answer is not HTTP, or cut short"))
}

/// Status and body of a whole answer after which the connection was closed.
fn parse(answer: &str) -> Option<(u16, String)> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let mut lines = head.lines();
    let mut status = lines.next()?.split(' ');
    status.next().filter(|version| version.starts_with("HTTP/1."))?;
    let status = status.next()?.parse().ok()?;
    let length = lines.filter_map(|line| line.split_once(':')).find_map(|(name, value)| {
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok()).flatten()
    });
    // Half an answer must not be taken for a whole one.
    length.is_none_or(|length| length == body.len()).then(|| (status, body.to_owned()))
}

impl Failure {
    fn json(&self, version: &str) -> Value {
        let version = if version.is_empty() { "1.0.0" } else { version };
        json!({"cniVersion": version, "code": self.code, "msg": self.message})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARGUMENTS: &str =
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=c;K8S_POD_UID=u1";

    fn environment(command: &str) -> Environment {
        Environment { command: command.into(), netns: "/var/run/netns/x".into(), arguments: ARGUMENTS.into() }
    }

    fn input(version: &str) -> Value {
        json!({
            "cniVersion": version, "name": "net", "type": "ambit-cni", "agent_socket": "/none",
            "exclude_namespaces": ["kube-system"], "system_namespace": "istio-system", "timeout_seconds": 1,
            "prevResult": {
                "cniVersion": version, "dns": {}, "unknown": {"kept": [1, null]},
                "interfaces": [{"name": "veth1", "mac": "aa"}, {"name": "eth0", "sandbox": "/var/run/netns/x"}],
                "ips": [
                    {"version": "4", "interface": 1, "address": "10.0.0.7/24", "gateway": "10.0.0.1"},
                    {"version": "4", "interface": 0, "address": "10.0.0.1/24"},
                    {"address": "fd00::7/64"},
                ],
            },
        })
    }

    fn add(input: &Value) -> Result<Task, Failure> {
        decide(&environment("ADD"), &input.to_string())
    }

    #[test]
    fn every_version_announces_the_pod_and_passes_the_result_on() {
        for version in VERSIONS {
            let input = input(version);
            let Ok(Task::Announce { arrival, result, exempt }) = add(&input) else { panic!("{version}") };
            assert_eq!(result, input["prevResult"]);
            assert!(!exempt);
            let ips: Vec<String> = arrival.ips.iter().map(|ip| ip.address.ip.to_string()).collect();
            assert_eq!(ips, ["10.0.0.7", "fd00::7"]);
            assert_eq!(arrival.netns, "/var/run/netns/x");
            let Arrival { pod_namespace, pod_name, pod_uid, .. } = arrival;
            assert_eq!(
                (pod_namespace.as_str(), pod_name.as_str(), pod_uid.as_deref()),
                ("shop", "web", Some("u1"))
            );
        }
    }

    #[test]
    fn excluded_namespaces_and_containers_that_are_no_pods_are_none_of_our_business() {
        let input = input("1.0.0");
        for arguments in [
            "",
            "IgnoreUnknown=1",
            "K8S_POD_NAME=x",
            "K8S_POD_NAMESPACE=kube-system;K8S_POD_NAME=dns",
            "K8S_POD_NAMESPACE=;K8S_POD_NAME=x",
        ] {
            let environment = Environment { arguments: arguments.into(), ..environment("ADD") };
            let said = decide(&environment, &input.to_string());
            assert_eq!(said, Ok(Task::Say(input["prevResult"].clone())), "{arguments}");
        }
    }

    #[test]
    fn the_meshs_own_pods_are_exempt() {
        let arguments = "K8S_POD_NAMESPACE=istio-system;K8S_POD_NAME=ztunnel-1".to_owned();
        let environment = Environment { arguments, ..environment("ADD") };
        let said = decide(&environment, &input("1.0.0").to_string());
        assert!(matches!(said, Ok(Task::Announce { exempt: true, .. })));
        let (said, failed) = run(&environment, input("1.0.0").to_string().as_bytes());
        assert_eq!((said, failed), (Some(input("1.0.0")["prevResult"].clone()), false));
    }

    #[test]
    fn others_in_the_meshs_namespace_are_not_nor_namesakes_elsewhere() {
        for (namespace, name, own) in [
            ("istio-system", "ztunnel-x7k2p", true),
            ("istio-system", "ambit-controller-6d5f9c7b8-x7k2p", true),
            ("istio-system", "ambit-controller-v2-6d5f9c7b8-x7k2p", true),
            ("istio-system", "waypoint-6d5f9c7b8-x7k2p", false),
            ("istio-system", "my-ztunnel-1", false),
            ("istio-system", "ztunnel", false),
            ("shop", "ztunnel-x7k2p", false),
        ] {
            let arguments = format!("K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name}");
            let environment = Environment { arguments, ..environment("ADD") };
            let said = decide(&environment, &input("1.0.0").to_string());
            let Ok(Task::Announce { exempt, .. }) = said else { panic!("{said:?}") };
            assert_eq!(exempt, own, "{namespace}/{name}");
            let (_, failed) = run(&environment, input("1.0.0").to_string().as_bytes());
            assert_eq!(failed, !own, "{namespace}/{name}");
        }
    }

    #[test]
    fn without_an_agent_no_other_pod_starts() {
        let (said, failed) = run(&environment("ADD"), input("0.4.0").to_string().as_bytes());
        let said = said.unwrap();
        assert!(failed);
        assert_eq!((&said["cniVersion"], &said["code"]), (&"0.4.0".into(), &TRY_AGAIN.into()));
        let message = said["msg"].as_str().unwrap();
        assert!(message.contains("shop/web") && message.contains("ambit-cni-node"), "{message}");
    }

    #[test]
    fn what_is_wrong_is_said_as_the_specification_wants_it() {
        let without = |field: &str| {
            let mut input = input("1.0.0");
            input.as_object_mut().unwrap().remove(field);
            input.to_string()
        };
        let no_netns = Environment { netns: String::new(), ..environment("ADD") };
        for (environment, input, code) in [
            (environment("ADD"), "{".to_owned(), UNDECODABLE),
            (environment("ADD"), "[]".to_owned(), UNDECODABLE),
            (environment("CHECK"), String::new(), UNDECODABLE),
            (environment("ADD"), without("prevResult"), BAD_CONFIGURATION),
            (environment("ADD"), without("cniVersion"), INCOMPATIBLE_VERSION),
            (environment("ADD"), input("0.2.0").to_string(), INCOMPATIBLE_VERSION),
            (no_netns, input("1.0.0").to_string(), BAD_ENVIRONMENT),
            (environment("add"), input("1.0.0").to_string(), BAD_ENVIRONMENT),
            (Environment::default(), String::new(), BAD_ENVIRONMENT),
        ] {
            let (said, failed) = run(&environment, input.as_bytes());
            let said = said.unwrap();
            assert!(failed, "{environment:?}");
            assert_eq!(said["code"], code, "{said}");
            assert!(said["msg"].as_str().is_some_and(|message| !message.is_empty()));
        }
    }

    #[test]
    fn the_other_commands_need_nobody() {
        for command in ["DEL", "GC", "STATUS", "CHECK"] {
            let (said, failed) = run(&environment(command), input("1.1.0").to_string().as_bytes());
            assert_eq!((said, failed), (None, false), "{command}");
        }
        // A runtime that has lost its configuration must still get rid of the pod.
        assert_eq!(run(&environment("DEL"), "nonsense".as_bytes()), (None, false));
        let (said, failed) = run(&environment("VERSION"), r#"{"cniVersion": "0.4.0"}"#.as_bytes());
        assert_eq!(said.unwrap()["supportedVersions"], json!(VERSIONS));
        assert!(!failed);
    }

    #[test]
    fn answers() {
        let whole = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\n\r\nno";
        assert_eq!(parse(whole), Some((503, "no".into())));
        assert_eq!(parse("HTTP/1.0 200 OK\r\n\r\nyes"), Some((200, "yes".into())));
        for broken in [
            "",
            "HTTP/1.1 200 OK\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nno",
            "SSH-2.0\r\n\r\n",
            "HTTP/1.1 x\r\n\r\n",
        ] {
            assert_eq!(parse(broken), None, "{broken}");
        }
    }
}
