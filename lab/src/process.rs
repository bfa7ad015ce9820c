//! Real processes in a namespace: started with their own group and log, watched, and ended with their handle.
//!
//! Each process has one thread that starts it, waits for it and reaps it. That thread lives exactly as long as the
//! process does, so `PR_SET_PDEATHSIG` (which acts when the *thread* that started a child dies) means: when we die.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use crate::netns::Netns;

/// How long a killed process may take to be gone: longer only when it hangs in the kernel.
const KILL_LIMIT: Duration = Duration::from_secs(5);
/// How often a log is looked at while waiting for a line.
const LOG_PAUSE: Duration = Duration::from_millis(5);

/// A running (or ended) process. Dropping it kills the process and its group.
#[derive(Debug)]
pub struct Process {
    name: String,
    pid: Pid,
    log: PathBuf,
    watched: Arc<Watched>,
}

/// What to run: program, arguments, environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    argv: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    dir: Option<PathBuf>,
}

/// How a finished command ended and what it printed.
#[derive(Debug, Clone)]
pub struct Output {
    /// The command, for messages.
    pub command: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// Why a process could not be started, waited for or believed.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// It could not be started.
    #[error(
        "cannot start `{command}`: {source}; `ip` (iproute2) and `setpriv` (util-linux) must be installed"
    )]
    Start {
        /// The command.
        command: String,
        /// Why.
        source: io::Error,
    },
    /// Its log or output file could not be used.
    #[error("cannot use the log of `{command}`: {source}; is the disk full?")]
    Log {
        /// The command.
        command: String,
        /// Why.
        source: io::Error,
    },
    /// It did not end in time.
    #[error("`{command}` did not end within {limit:?}; its log: {log}")]
    Timeout {
        /// The command.
        command: String,
        /// The time it was given.
        limit: Duration,
        /// The end of what it said.
        log: String,
    },
    /// It ended unsuccessfully.
    #[error("`{command}` ended with {status}; it said: {said}")]
    Failed {
        /// The command.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        said: String,
    },
    /// It never said the line that was waited for.
    #[error("`{command}` did not say {text:?} within {limit:?}; its log: {log}")]
    Silent {
        /// The command.
        command: String,
        /// The line waited for.
        text: String,
        /// The time it was given.
        limit: Duration,
        /// The end of its log.
        log: String,
    },
}

impl Program {
    /// A program by name or path.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self { argv: vec![program.as_ref().to_owned()], env: Vec::new(), dir: None }
    }

    /// A whole command line, the program first.
    pub fn line<S: AsRef<OsStr>>(argv: impl IntoIterator<Item = S>) -> Self {
        let argv = argv.into_iter().map(|arg| arg.as_ref().to_owned()).collect();
        Self { argv, env: Vec::new(), dir: None }
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.argv.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.argv.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets one environment variable.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Sets environment variables.
    #[must_use]
    pub fn envs<K: AsRef<OsStr>, V: AsRef<OsStr>>(self, vars: impl IntoIterator<Item = (K, V)>) -> Self {
        vars.into_iter().fold(self, |program, (name, value)| program.env(name, value))
    }

    /// Runs it in that directory.
    #[must_use]
    pub fn dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.dir = Some(dir.into());
        self
    }

    fn shown(&self) -> String {
        let words: Vec<_> = self.argv.iter().map(|word| word.to_string_lossy()).collect();
        words.join(" ")
    }

    /// `ip netns exec` gives it the namespace's `resolv.conf` too; `setpriv` ties its life to ours. Both `exec`, so
    /// the process that we start is the program itself.
    fn command(&self, netns: Option<&Netns>) -> Command {
        let mut command = match netns {
            Some(netns) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", netns.name(), "setpriv"]);
                command
            }
            None => Command::new("setpriv"),
        };
        command.args(["--pdeathsig", "KILL", "--"]).args(&self.argv);
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).process_group(0);
        if let Some(dir) = &self.dir {
            command.current_dir(dir);
        }
        command
    }
}

impl Process {
    /// Starts `program` in `netns` (or where we are), its output appended to `log`.
    pub fn start(netns: Option<&Netns>, program: &Program, log: &Path) -> Result<Self, ProcessError> {
        Self::start_watched(netns, program, log, |_| ())
    }

    /// As [`Process::start`]; `ended` is called once, from the watching thread, when the process is gone.
    pub fn start_watched(
        netns: Option<&Netns>,
        program: &Program,
        log: &Path,
        ended: impl FnOnce(ExitStatus) + Send + 'static,
    ) -> Result<Self, ProcessError> {
        let file = log
            .parent()
            .map_or(Ok(()), fs::create_dir_all)
            .and_then(|()| OpenOptions::new().create(true).append(true).open(log))
            .and_then(|file| Ok((file.try_clone()?, file)))
            .map_err(|source| ProcessError::Log { command: program.shown(), source })?;
        Self::launch(netns, program, file, log, ended)
    }

    fn launch(
        netns: Option<&Netns>,
        program: &Program,
        (stdout, stderr): (File, File),
        log: &Path,
        ended: impl FnOnce(ExitStatus) + Send + 'static,
    ) -> Result<Self, ProcessError> {
        let name = program.shown();
        let failed = |source| ProcessError::Start { command: name.clone(), source };
        let mut command = program.command(netns);
        command.stdout(stdout).stderr(stderr);
        let watched = Arc::new(Watched::default());
        let (started, starting) = mpsc::sync_channel(1);
        let watching = Arc::clone(&watched);
        thread::Builder::new()
            .name("lab-process".to_owned())
            .spawn(move || match command.spawn() {
                Ok(child) => {
                    let _ = started.send(Ok(child.id()));
                    ended(watching.until_gone(child));
                }
                Err(err) => drop(started.send(Err(err))),
            })
            .map_err(failed)?;
        let pid = starting
            .recv()
            .map_err(|_| failed(io::Error::other("the starting thread died")))?
            .map_err(failed)?;
        let pid = Pid::from_raw(i32::try_from(pid).map_err(|err| failed(io::Error::other(err)))?);
        Ok(Self { name, pid, log: log.to_owned(), watched })
    }

    /// Its process id, which is also its group's.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    /// Its command line.
    pub fn command(&self) -> &str {
        &self.name
    }

    /// Where its output goes.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// What it has said so far.
    pub fn said(&self) -> String {
        fs::read(&self.log)
            .map_or_else(|err| format!("(no log: {err})"), |log| String::from_utf8_lossy(&log).into_owned())
    }

    /// How it ended; `None` while it runs.
    pub fn ended(&self) -> Option<ExitStatus> {
        *self.watched.status()
    }

    /// Sends a signal to it alone. Nothing happens when it has ended.
    pub fn signal(&self, signal: Signal) {
        self.watched.while_alive(|| nix::sys::signal::kill(self.pid, signal));
    }

    /// Waits until it has ended.
    pub fn wait(&self, limit: Duration) -> Result<ExitStatus, ProcessError> {
        self.watched.wait(Instant::now() + limit).ok_or_else(|| ProcessError::Timeout {
            command: self.name.clone(),
            limit,
            log: self.tail(),
        })
    }

    /// SIGTERM, and SIGKILL for the group if it is still there after `grace`. Says how it ended.
    pub fn terminate(&self, grace: Duration) -> Result<ExitStatus, ProcessError> {
        self.signal(Signal::SIGTERM);
        match self.watched.wait(Instant::now() + grace) {
            Some(status) => Ok(status),
            None => self.kill(),
        }
    }

    /// SIGKILL for it and its group; returns when it is gone.
    pub fn kill(&self) -> Result<ExitStatus, ProcessError> {
        self.watched.while_alive(|| killpg(self.pid, Signal::SIGKILL));
        self.wait(KILL_LIMIT)
    }

    /// Waits until its log contains `text`.
    pub fn wait_until_said(&self, text: &str, limit: Duration) -> Result<(), ProcessError> {
        self.wait_until_said_times(text, 1, limit)
    }

    /// Waits until its log contains `text` so many times.
    pub fn wait_until_said_times(
        &self,
        text: &str,
        times: usize,
        limit: Duration,
    ) -> Result<(), ProcessError> {
        let deadline = Instant::now() + limit;
        loop {
            let ended = self.ended().is_some();
            if self.said().matches(text).count() >= times {
                return Ok(());
            }
            let now = Instant::now();
            if ended || now >= deadline {
                return Err(ProcessError::Silent {
                    command: self.name.clone(),
                    text: text.to_owned(),
                    limit,
                    log: self.tail(),
                });
            }
            // Wakes at once if it ends.
            self.watched.wait(now + LOG_PAUSE);
        }
    }

    fn tail(&self) -> String {
        tail(&self.said())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(err) = self.kill() {
            tracing::warn!(process = %self.name, error = %err, "Process could not be ended");
        }
    }
}

/// Runs `program` in `netns` (or where we are) to its end.
pub fn run(netns: Option<&Netns>, program: &Program, limit: Duration) -> Result<Output, ProcessError> {
    let command = program.shown();
    let unusable = |source| ProcessError::Log { command: command.clone(), source };
    let scratch = Scratch::open().map_err(unusable)?;
    let files = scratch.writers().map_err(unusable)?;
    let process = Process::launch(netns, program, files, Path::new("/dev/null"), |_| ())?;
    let status = process.watched.wait(Instant::now() + limit);
    if status.is_none() {
        process.kill()?;
    }
    let (stdout, stderr) = scratch.read().map_err(unusable)?;
    match status {
        Some(status) => Ok(Output { command, status, stdout, stderr }),
        None => Err(ProcessError::Timeout { command, limit, log: tail(&format!("{stdout}{stderr}")) }),
    }
}

impl Output {
    /// Its standard output if it succeeded; otherwise an error with all it said.
    pub fn ok(self) -> Result<String, ProcessError> {
        if self.status.success() {
            Ok(self.stdout)
        } else {
            let said = tail(&format!("{}{}", self.stdout, self.stderr));
            Err(ProcessError::Failed { command: self.command, status: self.status, said })
        }
    }
}

/// The last lines, which is where a program says why it gave up.
fn tail(text: &str) -> String {
    const LINES: usize = 20;
    let lines: Vec<_> = text.lines().collect();
    lines.get(lines.len().saturating_sub(LINES)..).unwrap_or_default().join("\n")
}

/// Two files without names: a pipe would stall a talkative command, or need two more threads.
struct Scratch {
    stdout: File,
    stderr: File,
}

impl Scratch {
    fn open() -> io::Result<Self> {
        Ok(Self { stdout: nameless()?, stderr: nameless()? })
    }

    fn writers(&self) -> io::Result<(File, File)> {
        Ok((self.stdout.try_clone()?, self.stderr.try_clone()?))
    }

    fn read(mut self) -> io::Result<(String, String)> {
        Ok((text(&mut self.stdout)?, text(&mut self.stderr)?))
    }
}

fn nameless() -> io::Result<File> {
    let memory = nix::sys::memfd::memfd_create(c"lab-output", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)?;
    Ok(File::from(memory))
}

fn text(file: &mut File) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The one fact about a process: how it ended, once it has.
#[derive(Debug, Default)]
struct Watched {
    status: Mutex<Option<ExitStatus>>,
    changed: Condvar,
}

impl Watched {
    fn status(&self) -> MutexGuard<'_, Option<ExitStatus>> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A process id stays ours until it is reaped, and it is reaped under this lock: no signal goes astray.
    fn while_alive(&self, signal: impl FnOnce() -> nix::Result<()>) {
        let status = self.status();
        if status.is_none() {
            // It may be a zombie already: then there is nothing to signal.
            let _ = signal();
        }
    }

    fn until_gone(&self, mut child: Child) -> ExitStatus {
        if let Ok(pid) = i32::try_from(child.id()).map(Pid::from_raw) {
            while let Err(nix::errno::Errno::EINTR) =
                waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT)
            {}
            // Whatever it left behind in its group ends with it.
            let _ = killpg(pid, Signal::SIGKILL);
        }
        let mut status = self.status();
        let ended = child.wait().unwrap_or_default();
        *status = Some(ended);
        self.changed.notify_all();
        ended
    }

    fn wait(&self, deadline: Instant) -> Option<ExitStatus> {
        let limit = deadline.saturating_duration_since(Instant::now());
        let (status, _) = self
            .changed
            .wait_timeout_while(self.status(), limit, |status| status.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        *status
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    #[test]
    fn a_command_gives_status_and_both_outputs() {
        let script = Program::new("sh").args(["-c", "echo out; echo err >&2; exit 3"]);
        let output = run(None, &script, SOON).unwrap();
        assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("out\n", "err\n"));
        let err = output.ok().unwrap_err().to_string();
        assert!(err.contains("exit status: 3") && err.contains("err"), "{err}");
    }

    #[test]
    fn a_command_that_dawdles_is_ended_with_its_children() {
        let script = Program::new("sh").args(["-c", "echo begun; sleep 1000 & wait"]);
        let before = Instant::now();
        let err = run(None, &script, Duration::from_millis(300)).unwrap_err();
        assert!(before.elapsed() < SOON);
        assert!(matches!(&err, ProcessError::Timeout { log, .. } if log == "begun"), "{err}");
    }

    #[test]
    fn a_process_is_heard_terminated_and_seen_to_end() {
        let dir = tempfile::tempdir().unwrap();
        let (ended, ending) = mpsc::channel();
        let script = Program::new("sh")
            .args(["-c", "trap 'echo bye; exit 7' TERM; echo \"hello $WHO\"; while :; do sleep 0.05; done"]);
        let process = Process::start_watched(
            None,
            &script.env("WHO", "lab"),
            &dir.path().join("a/b.log"),
            move |status| {
                ended.send(status).unwrap();
            },
        )
        .unwrap();
        process.wait_until_said("hello lab", SOON).unwrap();
        assert_eq!(process.ended(), None);
        assert_eq!(process.terminate(SOON).unwrap().code(), Some(7));
        assert_eq!(ending.recv_timeout(SOON).unwrap().code(), Some(7));
        assert!(process.said().ends_with("bye\n"));
    }

    #[test]
    fn a_dropped_process_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let process =
            Process::start(None, &Program::new("sleep").arg("1000"), &dir.path().join("log")).unwrap();
        let pid = process.pid();
        drop(process);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }

    #[test]
    fn a_program_that_is_not_there_says_so_in_its_log() {
        let dir = tempfile::tempdir().unwrap();
        let process = Process::start(None, &Program::new("ambit-no-such"), &dir.path().join("log")).unwrap();
        assert!(!process.wait(SOON).unwrap().success());
        assert!(process.said().contains("ambit-no-such"));
    }
}
