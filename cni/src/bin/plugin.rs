//! The CNI plugin's process: reads what the runtime says, does it, prints the result.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use ambit_cni::plugin::{self, Environment};
use ambit_runtime::env::Env;

fn main() -> ExitCode {
    let mut env = Env::of_process();
    let mut word = |name| env.string(name).or(String::new());
    let environment =
        Environment { command: word("CNI_COMMAND"), netns: word("CNI_NETNS"), arguments: word("CNI_ARGS") };
    let (said, failed) = plugin::run(&environment, io::stdin().lock());
    let printed = said.map_or(Ok(()), |said| writeln!(io::stdout().lock(), "{said}"));
    if failed || printed.is_err() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
