//! The two parts of every connection's story: getting there, and moving bytes until something ends it.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use ambit_wire::copy::End;

use crate::{
    access::Record,
    connections::{Registration, until_ended},
    refusal::Refusal,
};

/// The second part. Whoever is here has been let in, is recorded and connected.
pub(crate) type Carrying = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The whole story. Each part is boxed by itself: getting there takes kilobytes, and a connection that has
/// arrived gives them back and keeps what moving bytes needs.
#[must_use = "futures do nothing unless polled"]
pub(crate) enum Story<B> {
    /// On the way.
    Beginning(Pin<Box<B>>),
    /// Arrived.
    Carrying(Carrying),
}

impl<B: Future<Output = Option<Carrying>>> Story<B> {
    pub(crate) fn new(begin: B) -> Self {
        Self::Beginning(Box::pin(begin))
    }
}

impl<B: Future<Output = Option<Carrying>>> Future for Story<B> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            match &mut *self {
                Self::Beginning(begin) => match ready!(begin.as_mut().poll(cx)) {
                    Some(carrying) => *self = Self::Carrying(carrying),
                    None => return Poll::Ready(()),
                },
                Self::Carrying(carrying) => return carrying.as_mut().poll(cx),
            }
        }
    }
}

/// Moves bytes until all is said, or the connection must end. `guard` lives as long.
pub(crate) fn carry(
    mut copying: impl Future<Output = End> + Send + Unpin + 'static,
    registration: Registration,
    record: Record,
    guard: impl Send + 'static,
) -> Carrying {
    Box::pin(async move {
        let copied = until_ended(&registration, &mut copying).await;
        record.close(outcome(&copied).as_ref().map_or(Ok(()), Err));
        drop(guard);
    })
}

/// Both ends are on this node: one copy, two records, and either end may be told to stop.
pub(crate) fn carry_to_neighbour(
    mut copying: impl Future<Output = End> + Send + Unpin + 'static,
    (here, departure): (Registration, Record),
    (there, arrival): (Registration, Record),
    guard: impl Send + 'static,
) -> Carrying {
    Box::pin(async move {
        let copied = until_ended(&here, until_ended(&there, &mut copying)).await;
        let outcome = outcome(&copied.and_then(|copied| copied));
        arrival.close(outcome.as_ref().map_or(Ok(()), Err));
        departure.close(outcome.as_ref().map_or(Ok(()), Err));
        drop(guard);
    })
}

/// Why a connection did not end well; `None` when it did. A peer that goes away is daily life
/// (protocols 4.7).
fn outcome(copied: &Result<End, Refusal>) -> Option<Refusal> {
    match copied {
        Ok(End::Complete | End::Left(_)) => None,
        Ok(End::Failed(_, error)) => Some(Refusal::Broken(error.to_string())),
        Err(refusal) => Some(refusal.clone()),
    }
}
