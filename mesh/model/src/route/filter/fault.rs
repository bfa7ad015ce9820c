//! Failures on purpose: requests that are held back, or answered as if something had failed (HTTPFaultInjection of
//! Istio's VirtualService).
//!
//! Delay and abort are drawn apart, so a request may meet both: it is held back first.

use std::time::Duration;

use http::StatusCode;
use thiserror::Error;

use super::Fraction;
use crate::balance::Dice;

/// The longest that a request is held back: each takes memory meanwhile, and a client that waits longer has given up.
const LONGEST: Duration = Duration::from_secs(60);

/// What is done to some requests. Made only by [`Fault::new`], which judges it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    delay: Option<Delay>,
    abort: Option<Abort>,
}

/// Some requests are held back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delay {
    /// Of how many.
    pub share: Fraction,
    /// How long.
    pub time: Duration,
}

/// Some requests are answered, and not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abort {
    /// Of how many.
    pub share: Fraction,
    /// With what.
    pub with: With,
}

/// What a request is answered with that is not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum With {
    /// This status, 200 to 599.
    Http(StatusCode),
    /// This status of a gRPC call.
    Grpc(GrpcCode),
}

/// What becomes of one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Injected {
    /// It is held back so long.
    pub delay: Option<Duration>,
    /// Then it is answered with this.
    pub abort: Option<With>,
}

impl Fault {
    /// Judges what is to be done.
    pub fn new(delay: Option<Delay>, abort: Option<Abort>) -> Result<Self, InvalidFault> {
        match (delay, abort) {
            (None, None) => return Err(InvalidFault::Nothing),
            (Some(Delay { time, .. }), _) if time.is_zero() || time > LONGEST => {
                return Err(InvalidFault::Delay(time));
            }
            (_, Some(Abort { with: With::Http(status), .. })) if !is_final(status) => {
                return Err(InvalidFault::Status(status.as_u16()));
            }
            (_, _) => {}
        }
        Ok(Self { delay, abort })
    }

    /// Which requests are held back.
    pub fn delay(&self) -> Option<&Delay> {
        self.delay.as_ref()
    }

    /// Which requests are answered.
    pub fn abort(&self) -> Option<&Abort> {
        self.abort.as_ref()
    }

    /// What becomes of one request.
    pub fn draw(&self, dice: &mut dyn Dice) -> Injected {
        Injected {
            delay: self.delay.filter(|delay| delay.share.draw(dice)).map(|delay| delay.time),
            abort: self.abort.filter(|abort| abort.share.draw(dice)).map(|abort| abort.with),
        }
    }
}

/// A status that ends an exchange.
fn is_final(status: StatusCode) -> bool {
    (200..=599).contains(&status.as_u16())
}

/// Every status of a gRPC call: its name, its number, that as it is written, and the HTTP status of the same meaning (`http-grpc-status-mapping`
/// of the gRPC project, read backwards; `code.proto` of Google's APIs).
const CODES: [(&str, u32, &str, StatusCode); 17] = [
    ("OK", 0, "0", StatusCode::OK),
    ("CANCELLED", 1, "1", StatusCode::REQUEST_TIMEOUT),
    ("UNKNOWN", 2, "2", StatusCode::INTERNAL_SERVER_ERROR),
    ("INVALID_ARGUMENT", 3, "3", StatusCode::BAD_REQUEST),
    ("DEADLINE_EXCEEDED", 4, "4", StatusCode::GATEWAY_TIMEOUT),
    ("NOT_FOUND", 5, "5", StatusCode::NOT_FOUND),
    ("ALREADY_EXISTS", 6, "6", StatusCode::CONFLICT),
    ("PERMISSION_DENIED", 7, "7", StatusCode::FORBIDDEN),
    ("RESOURCE_EXHAUSTED", 8, "8", StatusCode::TOO_MANY_REQUESTS),
    ("FAILED_PRECONDITION", 9, "9", StatusCode::BAD_REQUEST),
    ("ABORTED", 10, "10", StatusCode::CONFLICT),
    ("OUT_OF_RANGE", 11, "11", StatusCode::BAD_REQUEST),
    ("UNIMPLEMENTED", 12, "12", StatusCode::NOT_IMPLEMENTED),
    ("INTERNAL", 13, "13", StatusCode::INTERNAL_SERVER_ERROR),
    ("UNAVAILABLE", 14, "14", StatusCode::SERVICE_UNAVAILABLE),
    ("DATA_LOSS", 15, "15", StatusCode::INTERNAL_SERVER_ERROR),
    ("UNAUTHENTICATED", 16, "16", StatusCode::UNAUTHORIZED),
];

/// A status of a gRPC call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrpcCode {
    name: &'static str,
    code: u32,
    number: &'static str,
    http: StatusCode,
}

impl GrpcCode {
    /// The status of this name, `UNAVAILABLE`, or number, `14`.
    pub fn parse(text: &str) -> Option<Self> {
        let found = CODES.iter().find(|(name, _, number, _)| *name == text || *number == text);
        found.map(|(name, code, number, http)| Self { name, code: *code, number, http: *http })
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        self.name
    }

    /// Its number.
    pub fn code(self) -> u32 {
        self.code
    }

    /// Its number, as `grpc-status` has it.
    pub fn number(self) -> &'static str {
        self.number
    }

    /// What whoever made no call is answered in its place.
    pub fn http(self) -> StatusCode {
        self.http
    }
}

/// Why a fault is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum InvalidFault {
    /// Nothing is to be done.
    #[error("neither delays nor aborts anything")]
    Nothing,
    /// It would hold requests for too long, or for no time.
    #[error("a delay of {0:?} is not one of 1ns to {LONGEST:?}")]
    Delay(Duration),
    /// No response ends with this.
    #[error("{0} is no status of 200 to 599")]
    Status(u16),
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn half() -> Fraction {
        Fraction::new(1, 2).expect("a part")
    }

    #[test]
    fn delay_and_abort_are_drawn_apart() {
        let with = With::Http(StatusCode::SERVICE_UNAVAILABLE);
        let delay = Delay { share: half(), time: SECOND };
        let fault = Fault::new(Some(delay), Some(Abort { share: half(), with })).expect("a fault");
        let (later, failed) = (Some(SECOND), Some(with));
        let table = [
            ([0, 0], Injected { delay: later, abort: failed }),
            ([0, 1], Injected { delay: later, abort: None }),
            ([1, 0], Injected { delay: None, abort: failed }),
            ([1, 1], Injected::default()),
        ];
        for (rolls, expected) in table {
            let mut rolls = rolls.into_iter();
            assert_eq!(fault.draw(&mut |_: u64| rolls.next().expect("a roll")), expected);
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let delay = |time| Fault::new(Some(Delay { share: half(), time }), None);
        assert_eq!(Fault::new(None, None), Err(InvalidFault::Nothing));
        assert_eq!(delay(Duration::ZERO), Err(InvalidFault::Delay(Duration::ZERO)));
        assert!(delay(60 * SECOND).is_ok());
        assert_eq!(delay(61 * SECOND), Err(InvalidFault::Delay(61 * SECOND)));
        let abort = |status| {
            let with = With::Http(StatusCode::from_u16(status).expect("a status"));
            Fault::new(None, Some(Abort { share: half(), with }))
        };
        assert_eq!(abort(101), Err(InvalidFault::Status(101)));
        assert_eq!(abort(600), Err(InvalidFault::Status(600)));
        assert!(abort(200).is_ok() && abort(599).is_ok());
    }

    #[test]
    fn codes_of_calls_have_names_and_numbers() {
        let parsed = |text| GrpcCode::parse(text).map(|code| (code.name(), code.number(), code.http()));
        let unavailable = Some(("UNAVAILABLE", "14", StatusCode::SERVICE_UNAVAILABLE));
        assert_eq!((parsed("UNAVAILABLE"), parsed("14")), (unavailable, unavailable));
        assert_eq!((parsed("17"), parsed("unavailable"), parsed("")), (None, None, None));
    }
}
