//! `ambit waypoint token`: has the controller sign a debug token, with which a request is explained by its waypoint.

use std::process::ExitCode;

use anyhow::{Context as _, bail};

use super::place::Place;
use crate::cmd::playground::state::Kind;
use crate::cmd::sources::Sources;
use crate::objects::escaped;
use crate::output::Out;

const ABOUT: &str = "The token goes into the request's header x-ambit-debug; its response says in x-ambit-explanation which policies,
route, limits and endpoints decided, and why. Whoever has the token sees that of the requests that he sends, until it
expires: treat it as a password. It is signed by whoever may reach the controller's pages: in a cluster, who may create
pods/portforward in its namespace.

Examples:
  ambit waypoint token --namespace shop
  ambit waypoint token --namespace shop waypoint --for 1h
  curl -si -H \"x-ambit-debug: $(ambit waypoint token -n shop)\" http://web.shop/";

/// Which requests are to be explained.
#[derive(Debug, clap::Args)]
#[command(after_help = ABOUT)]
pub(super) struct TokenArgs {
    /// By which waypoint. Not given: by any of the namespace.
    #[arg(id = "waypoint", value_name = "NAME")]
    name: Option<String>,
    /// For how long, at most an hour: 30s, 10m, 1h.
    #[arg(id = "life", long = "for", value_name = "TIME", default_value = "10m")]
    life: String,
    #[command(flatten)]
    sources: Sources,
}

/// Prints a token, and nothing else.
pub(super) async fn token(
    namespace: Option<&str>,
    args: &TokenArgs,
    out: &mut Out,
) -> anyhow::Result<ExitCode> {
    let namespace = match namespace {
        Some(namespace) => namespace.to_owned(),
        None => {
            let (playground, cluster) = args.sources.mesh();
            Place::find(playground, cluster).await?.namespace().to_owned()
        }
    };
    let path = page(&namespace, args.name.as_deref(), &args.life);
    let mut failed = None;
    // Each of several controllers can sign.
    for target in args.sources.all().await?.into_iter().filter(|target| target.kind == Kind::Controller) {
        match target.admin.post(&path).await {
            Ok(token) => {
                out.line(token.trim_end())?;
                return Ok(ExitCode::SUCCESS);
            }
            Err(error) => failed = Some(error),
        }
    }
    match failed {
        Some(error) => Err(error).context("no debug token was signed"),
        None => bail!("no controller is known; name its pages with --controller ADDRESS"),
    }
}

/// The page that signs.
fn page(namespace: &str, name: Option<&str>, life: &str) -> String {
    let audience = name.map_or_else(|| namespace.to_owned(), |name| format!("{namespace}/{name}"));
    format!("/debug/token?for={}&life={}", escaped(&audience), escaped(life))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_controller_is_asked_for_one_waypoint_or_for_all_of_a_namespace() {
        assert_eq!(page("shop", None, "10m"), "/debug/token?for=shop&life=10m");
        let decoded = page("shop", Some("gate"), "1h").replace("%2F", "/");
        assert_eq!(decoded, "/debug/token?for=shop/gate&life=1h");
        let odd = page("a&b", None, "1 h");
        assert!(!odd.contains(' ') && odd.matches('&').count() == 1, "{odd}");
    }
}
