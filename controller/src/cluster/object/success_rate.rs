//! What annotations of a DestinationRule say of success rates, for which Istio's API has no field.
//!
//! | annotation | like Envoy's |
//! |---|---|
//! | `ambit.io/success-rate-stdev-factor` | `success_rate_stdev_factor`, in thousandths there |
//! | `ambit.io/success-rate-minimum-hosts` | `success_rate_minimum_hosts` |
//! | `ambit.io/success-rate-request-volume` | `success_rate_request_volume` |

use std::time::Duration;

use ambit_api::labels;
use ambit_model::traffic::SuccessRate;

use super::{Labels, Rejection};

/// What is meant by success rates of which only the factor is said (Envoy's `success_rate_minimum_hosts` and
/// `success_rate_request_volume`).
const RATED_HOSTS: u32 = 5;
const RATED_REQUESTS: u32 = 100;
/// The largest factor, in thousandths. Among as many endpoints as a waypoint compares, nobody can be further off.
const LARGEST_FACTOR: u32 = 128_000;

/// What annotations say of success rates, for which Istio's API has no field.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rate {
    /// In thousandths.
    factor: u32,
    hosts: u32,
    requests: u32,
}

impl Rate {
    /// `None`: nothing is said of them.
    pub(super) fn parse(annotations: &Labels) -> Result<Option<Self>, Rejection> {
        let (mut factor, mut hosts, mut requests) = (None, None, None);
        for (name, text) in annotations.iter().filter(|(name, _)| name.starts_with(labels::SUCCESS_RATE)) {
            match name {
                labels::SUCCESS_RATE_STDEV_FACTOR => factor = Some(parse_factor(text)?),
                // One endpoint alone is never below the mean.
                labels::SUCCESS_RATE_MINIMUM_HOSTS => hosts = Some(parse_count(name, text, 2)?),
                labels::SUCCESS_RATE_REQUEST_VOLUME => requests = Some(parse_count(name, text, 1)?),
                other => {
                    let remedy = "success rates have stdev-factor, minimum-hosts and request-volume";
                    return Err(Rejection::new(annotation(other), "is not known", remedy));
                }
            }
        }
        let beside = [
            (labels::SUCCESS_RATE_MINIMUM_HOSTS, hosts.is_some()),
            (labels::SUCCESS_RATE_REQUEST_VOLUME, requests.is_some()),
        ];
        match (factor, beside.into_iter().find(|(_, is_there)| *is_there)) {
            (None, None) => Ok(None),
            (None, Some((name, _))) => {
                let remedy = format!("write {}, too", labels::SUCCESS_RATE_STDEV_FACTOR);
                Err(Rejection::new(annotation(name), "says nothing alone", remedy))
            }
            (Some(factor), _) => Ok(Some(Self {
                factor,
                hosts: hosts.unwrap_or(RATED_HOSTS),
                requests: requests.unwrap_or(RATED_REQUESTS),
            })),
        }
    }

    /// As a waypoint is told, with the `interval` that an `outlierDetection` says.
    pub(super) fn over(self, interval: Duration) -> SuccessRate {
        let Self { factor, hosts, requests } = self;
        SuccessRate { factor, least_endpoints: hosts, least_requests: requests, interval }
    }
}

/// Where one of them is written.
pub(super) fn annotation(name: &str) -> String {
    format!("metadata.annotations[{name}]")
}

/// A number such as `1.9`, in thousandths.
fn parse_factor(text: &str) -> Result<u32, Rejection> {
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let thousandths = || {
        let whole: u32 = whole.parse().ok()?;
        let part: u32 = format!("{part:0<3}").parse().ok()?;
        whole.checked_mul(1000)?.checked_add(part)
    };
    let factor = (digits(whole) && digits(part) && part.len() <= 3).then(thousandths).flatten();
    factor.filter(|factor| (1..=LARGEST_FACTOR).contains(factor)).ok_or_else(|| {
        let what = format!("{text:?} is no factor");
        let remedy =
            "write a number such as 1.9: above 0, at most 128, with three digits after the point at most";
        Rejection::new(annotation(labels::SUCCESS_RATE_STDEV_FACTOR), what, remedy)
    })
}

fn parse_count(name: &str, text: &str, least: u32) -> Result<u32, Rejection> {
    let count = text.parse().ok().filter(|count| *count >= least && !text.starts_with('+'));
    count.ok_or_else(|| {
        let what = format!("{text:?} is no number");
        Rejection::new(annotation(name), what, format!("write a whole number, {least} or more"))
    })
}
