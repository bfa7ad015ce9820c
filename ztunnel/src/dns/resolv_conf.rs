//! Which nameservers there are: the tunnel's own `resolv.conf`. Pure.
//!
//! The search list is left out on purpose: clients have applied their own before they asked.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

/// The port of nameservers.
const DNS_PORT: u16 = 53;

/// How many nameservers are heeded; the C library heeds three.
const MOST_NAMESERVERS: usize = 8;

/// How long a nameserver is waited for at most, before the next is asked. Less than the five seconds
/// of the C library, whose clients would otherwise have given us up before the second is asked.
const MOST_PATIENCE: Duration = Duration::from_secs(2);

/// How often the whole list is gone through at most.
const MOST_ATTEMPTS: usize = 3;

/// Nameservers and how they are asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvConf {
    /// In order of preference.
    pub nameservers: Vec<SocketAddr>,
    /// How long one of them is waited for.
    pub patience: Duration,
    /// How often the list is gone through.
    pub attempts: usize,
}

impl ResolvConf {
    /// Reads the text of a `resolv.conf`. What is not understood is left out, as by every reader of
    /// that file.
    pub fn parse(text: &str) -> Self {
        let mut read = Self { nameservers: Vec::new(), patience: MOST_PATIENCE, attempts: 2 };
        for line in text.lines() {
            let mut words = line.split([';', '#']).next().unwrap_or_default().split_whitespace();
            match words.next() {
                Some("nameserver") => read.nameservers.extend(words.next().and_then(nameserver)),
                Some("options") => words.for_each(|option| read.heed(option)),
                Some(_) | None => {}
            }
        }
        read.nameservers.truncate(MOST_NAMESERVERS);
        read
    }

    fn heed(&mut self, option: &str) {
        match option.split_once(':') {
            Some(("timeout", seconds)) => {
                if let Ok(seconds @ 1..) = seconds.parse() {
                    self.patience = Duration::from_secs(seconds).min(MOST_PATIENCE);
                }
            }
            Some(("attempts", attempts)) => {
                if let Ok(attempts @ 1..) = attempts.parse::<usize>() {
                    self.attempts = attempts.min(MOST_ATTEMPTS);
                }
            }
            Some(_) | None => {}
        }
    }
}

/// An address with a zone (`fe80::1%eth0`) is left out: the zone means nothing in a pod's namespace.
fn nameserver(text: &str) -> Option<SocketAddr> {
    let ip: IpAddr = text.parse().ok()?;
    Some(SocketAddr::new(ip, DNS_PORT))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nameservers_are_taken_in_order_and_the_rest_is_left() {
        let read = ResolvConf::parse(
            "# written by the kubelet\nsearch shop.svc.cluster.local cluster.local\n\
             nameserver 10.96.0.10 ; the cluster's\nnameserver fd00::a\nnameserver fe80::1%eth0\n\
             nameserver nonsense\n;nameserver 1.1.1.1\nsortlist 1\noptions ndots:5 timeout:1 attempts:9 edns0\n",
        );
        let nameservers = ["10.96.0.10:53", "[fd00::a]:53"].map(|text| text.parse().unwrap());
        let expected =
            ResolvConf { nameservers: nameservers.into(), patience: Duration::from_secs(1), attempts: 3 };
        assert_eq!(read, expected);
    }

    #[test]
    fn nothing_is_read_from_nothing() {
        let read = ResolvConf::parse("");
        assert_eq!(read, ResolvConf { nameservers: Vec::new(), patience: MOST_PATIENCE, attempts: 2 });
        let patient = ResolvConf::parse("options timeout:30 attempts:0 timeout:x timeout:");
        assert_eq!((patient.patience, patient.attempts), (MOST_PATIENCE, 2));
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in "(nameserver|options|[ -~\n:;#.0-9])*") {
            let read = ResolvConf::parse(&text);
            prop_assert!(read.nameservers.len() <= MOST_NAMESERVERS);
            prop_assert!(read.attempts <= MOST_ATTEMPTS && !read.patience.is_zero());
        }
    }
}
