//! Copies of requests, whose responses nobody reads (HTTPRequestMirrorFilter).

use thiserror::Error;

use crate::{balance::Dice, route::Destination};

/// Who gets a copy, and of which share of the requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// To whom. An invalid one gets nothing, and the request goes on without it.
    pub to: Destination,
    /// Of how many.
    pub share: Fraction,
}

/// A part of all requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fraction {
    numerator: u32,
    denominator: u32,
}

impl Fraction {
    /// Every request: what a mirror gets of which nothing is said.
    pub const ALL: Self = Self { numerator: 1, denominator: 1 };

    /// `numerator` of `denominator`.
    pub fn new(numerator: u32, denominator: u32) -> Result<Self, InvalidFraction> {
        let fits = denominator > 0 && numerator <= denominator;
        fits.then_some(Self { numerator, denominator }).ok_or(InvalidFraction { numerator, denominator })
    }

    /// `percent` of a hundred.
    pub fn percent(percent: u32) -> Result<Self, InvalidFraction> {
        Self::new(percent, 100)
    }

    /// How many of how many.
    pub fn parts(self) -> (u32, u32) {
        (self.numerator, self.denominator)
    }

    /// Whether one request belongs to it.
    pub fn draw(self, dice: &mut dyn Dice) -> bool {
        dice.below(u64::from(self.denominator)) < u64::from(self.numerator)
    }
}

/// Why a fraction is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{numerator} of {denominator} is no part of the whole")]
pub struct InvalidFraction {
    numerator: u32,
    denominator: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_are_drawn_as_are_asked_for() {
        let drawn =
            |share: Fraction| (0..1000_u64).filter(|roll| share.draw(&mut |of: u64| roll % of)).count();
        let table = [
            (Fraction::percent(0), 0),
            (Fraction::percent(20), 200),
            (Fraction::percent(100), 1000),
            (Fraction::new(5, 1000), 5),
            (Ok(Fraction::ALL), 1000),
        ];
        for (share, expected) in table {
            assert_eq!(share.map(drawn), Ok(expected), "{share:?}");
        }
    }

    #[test]
    fn no_part_is_more_than_the_whole() {
        assert!(Fraction::percent(101).is_err());
        assert!(Fraction::new(1, 0).is_err());
        assert!(Fraction::new(0, 0).is_err());
    }
}
