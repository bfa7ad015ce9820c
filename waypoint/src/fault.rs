//! Failures on purpose, as a rule says: a request is held back, or answered in place of an endpoint.

use std::time::Duration;

use ambit_model::route::{Chosen, Injected, Timeout};
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep_until},
};

use crate::{
    access::Record,
    metrics::{FaultOutcome, Metrics},
    plan::route_name,
    refusal::Refusal,
    shared::dice,
};

/// How many requests are held back at a time by one worker. Each takes a stream and some memory; more are sent on at once,
/// since who tries a failure out does not want another one.
const HELD: usize = 1024;

/// Does to requests what rules say, on one worker.
#[derive(Debug)]
pub struct Faults {
    places: Semaphore,
}

impl Default for Faults {
    fn default() -> Self {
        Self { places: Semaphore::new(HELD) }
    }
}

impl Faults {
    /// Does to a request what the rule says that was `chosen` for it. Its time runs since `began`, held back or not.
    ///
    /// # Errors
    /// With what it is answered.
    pub async fn inject(
        &self,
        chosen: Option<&Chosen<'_>>,
        began: Instant,
        metrics: &Metrics,
        record: &mut Record,
    ) -> Result<(), Refusal> {
        let Some((chosen, fault)) = chosen.and_then(|one| Some((one, one.rule.filters.fault()?))) else {
            return Ok(());
        };
        let Injected { delay, abort } = fault.draw(&mut dice());
        if let Some(delay) = delay {
            self.hold(delay, chosen.rule.timeouts.request, began, metrics, record).await?;
        }
        match abort {
            None => Ok(()),
            Some(with) => {
                metrics.fault(FaultOutcome::Aborted);
                Err(Refusal::Aborted { route: route_name(chosen), with })
            }
        }
    }

    async fn hold(
        &self,
        delay: Duration,
        limit: Timeout,
        began: Instant,
        metrics: &Metrics,
        record: &mut Record,
    ) -> Result<(), Refusal> {
        let Ok(_place) = self.places.try_acquire() else {
            metrics.fault(FaultOutcome::Skipped);
            return Ok(());
        };
        metrics.fault(FaultOutcome::Delayed);
        record.delayed();
        record.explain(|told, _| told.delayed(delay));
        match limit {
            Timeout::After(limit) if limit <= delay => {
                sleep_until(began + limit).await;
                Err(Refusal::TimedOut(limit))
            }
            Timeout::After(_) | Timeout::Default | Timeout::Never => {
                sleep_until(began + delay).await;
                Ok(())
            }
        }
    }
}
