//! Who calls: asked of the tokens of nodes ([`crate::nodes`]) or of Kubernetes ([`crate::reviewer`]).

use std::sync::Arc;

use tokio::task::spawn_blocking;

use crate::{
    ca::caller::Caller,
    nodes::{Nodes, NotANode},
    reviewer::{Reviewer, Unreviewed},
};

/// Whoever knows callers by their tokens. Cheap to clone.
#[derive(Clone, Debug)]
pub enum Callers {
    /// Each node has a token in a file.
    Tokens(Arc<Nodes>),
    /// Tokens are those of service accounts.
    Kubernetes(Reviewer),
}

impl Callers {
    /// Who shows this token.
    pub async fn identify(&self, token: Option<String>) -> Result<Caller, Stranger> {
        let token = token.filter(|token| !token.is_empty()).ok_or(Stranger::NoToken)?;
        match self {
            Self::Tokens(nodes) => {
                let nodes = Arc::clone(nodes);
                let identified = spawn_blocking(move || nodes.identify(&token)).await;
                Ok(identified.map_err(|_| Stranger::Ending)??)
            }
            Self::Kubernetes(reviewer) => Ok(reviewer.identify(&token).await?),
        }
    }
}

/// Why it is not known who calls.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stranger {
    /// Nothing was shown.
    #[error("no token; set AUTH_TOKEN to the file with the token of the node or of the service account")]
    NoToken,
    /// Not the token of a node.
    #[error(transparent)]
    NotANode(#[from] NotANode),
    /// Not a token that Kubernetes vouches for, or it could not be asked.
    #[error(transparent)]
    Unreviewed(#[from] Unreviewed),
    /// The process ends.
    #[error("the controller is ending; try again")]
    Ending,
}

impl Stranger {
    /// Whether the caller may be somebody all the same, and should come back.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::NoToken | Self::NotANode(_) => false,
            Self::Unreviewed(why) => why.is_temporary(),
            Self::Ending => true,
        }
    }
}

impl From<Stranger> for tonic::Status {
    fn from(stranger: Stranger) -> Self {
        let text = stranger.to_string();
        if stranger.is_temporary() { Self::unavailable(text) } else { Self::unauthenticated(text) }
    }
}
