//! Where a connection stands between messages, and what may be written there. Pure.
//!
//! What is below HTTP sees two moments: it writes, or it has nothing left to write and flushes. While a request is being
//! answered, what HTTP still has to write of earlier responses, or of its own `100 Continue`, is known to have left whole
//! when it flushes; until it writes again, the connection is at a boundary.
//!
//! ```text
//!            open             flushed             writes
//!  Nobody ─────────► Behind ─────────► Boundary ─────────► Behind
//!    ▲                 │ close             │ close
//!    │ writes: all are dropped             ▼
//!    └─────────────────┴───────────────  Last: all are written, then the response
//! ```

use std::collections::VecDeque;

use bytes::{Buf as _, Bytes};

/// What happens to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// HTTP is about to write.
    Writes,
    /// HTTP has nothing left to write.
    Flushed,
}

/// Where a connection stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    /// No request is being answered whose client takes interim responses.
    #[default]
    Nobody,
    /// One is; something that was written before may be half-way.
    Behind,
    /// One is, and whatever was written before has left whole.
    Boundary,
    /// Its response is what HTTP writes next, after something that may be half-way.
    BehindLast,
    /// Its response is what HTTP writes next, and nothing is half-way.
    Last,
}

/// Interim responses in the order in which they are written.
#[derive(Debug, Default)]
pub(super) struct Line {
    stage: Stage,
    heads: VecDeque<Bytes>,
    /// Of the first, some has been written: nothing may be written before the rest of it.
    begun: bool,
}

impl Line {
    /// A request is being answered.
    pub(super) fn open(&mut self) {
        self.drop_rest();
        self.stage = Stage::Behind;
    }

    /// Its response is there.
    pub(super) fn close(&mut self) {
        self.stage = match self.stage {
            Stage::Nobody => Stage::Nobody,
            Stage::Behind | Stage::BehindLast => Stage::BehindLast,
            Stage::Boundary | Stage::Last => Stage::Last,
        };
    }

    /// Another, after those that are there.
    pub(super) fn add(&mut self, head: Bytes) {
        if matches!(self.stage, Stage::Behind | Stage::Boundary) {
            self.heads.push_back(head);
        }
    }

    /// How many will never be written, now that this happens.
    pub(super) fn at(&mut self, moment: Moment) -> u64 {
        self.stage = match (self.stage, moment) {
            (Stage::Behind | Stage::Boundary, Moment::Flushed) => Stage::Boundary,
            // No response was written after all.
            (Stage::BehindLast | Stage::Last, Moment::Flushed) => Stage::Nobody,
            // What is written may have the response behind it.
            (Stage::BehindLast, Moment::Writes) => Stage::Nobody,
            (stage @ (Stage::Nobody | Stage::Behind | Stage::Boundary | Stage::Last), _) => stage,
        };
        if self.stage == Stage::Nobody { self.drop_rest() } else { 0 }
    }

    /// What is to be written now.
    pub(super) fn due(&self) -> Option<&[u8]> {
        let whole = matches!(self.stage, Stage::Boundary | Stage::Last);
        self.heads.front().filter(|_| whole || self.begun).map(|head| &head[..])
    }

    /// So much of it was.
    pub(super) fn wrote(&mut self, bytes: usize) {
        let Some(head) = self.heads.front_mut() else { return };
        head.advance(bytes.min(head.len()));
        self.begun = !head.is_empty();
        if head.is_empty() {
            self.heads.pop_front();
        }
    }

    /// Nothing is due any more, and what happens goes its way.
    pub(super) fn passed(&mut self, moment: Moment) {
        self.stage = match (self.stage, moment) {
            (Stage::Boundary, Moment::Writes) => Stage::Behind,
            (Stage::Last, Moment::Writes) => Stage::Nobody,
            (stage, _) => stage,
        };
    }

    fn drop_rest(&mut self) -> u64 {
        let kept = usize::from(self.begun);
        let dropped = self.heads.len().saturating_sub(kept);
        self.heads.truncate(kept);
        u64::try_from(dropped).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What happens, in letters: `o`pen, `c`lose, `a`dd the next of `1`, `2`, …; HTTP `w`rites or `f`lushes. HTTP's own
    /// writes are `W` in what leaves.
    fn leaves(story: &str) -> String {
        let (mut line, mut out, mut next) = (Line::default(), String::new(), 0);
        for step in story.chars() {
            let moment = match step {
                'o' => {
                    line.open();
                    continue;
                }
                'c' => {
                    line.close();
                    continue;
                }
                'a' => {
                    next += 1;
                    line.add(Bytes::from(next.to_string()));
                    continue;
                }
                'w' => Moment::Writes,
                'f' => Moment::Flushed,
                other => panic!("no step: {other}"),
            };
            line.at(moment);
            while let Some(piece) = line.due().map(Bytes::copy_from_slice) {
                out.push_str(std::str::from_utf8(&piece).expect("text"));
                line.wrote(piece.len());
            }
            line.passed(moment);
            if moment == Moment::Writes {
                out.push('W');
            }
        }
        out
    }

    #[test]
    fn only_between_messages() {
        let table = [
            ("at once, where nothing is half-way", "ofaf", "1"),
            ("before the response, which comes with it", "ofacwf", "1W"),
            ("not before what is half-way has left", "oawwf", "WW1"),
            ("after our own 100", "ofwaf", "W1"),
            ("before our own 100, which has not begun", "ofawf", "1W"),
            ("in the order in which they came", "ofaafaf", "123"),
            ("the response may be behind what is half-way", "ofwacwf", "WW"),
            ("nor when nothing was ever flushed", "oacwf", "W"),
            ("in the middle of a response", "ofcwafwf", "WW"),
            ("of a response that was never written", "ofacf", ""),
            ("of the next request", "ofcwoafwf", "W1W"),
            ("what was left behind is not the next one's", "oacofw", "W"),
            ("nobody asked", "awf", "W"),
        ];
        for (what, story, expected) in table {
            assert_eq!(leaves(story), expected, "{what}: {story}");
        }
    }

    #[test]
    fn what_has_begun_is_written_to_its_end_before_anything_else() {
        let mut line = Line::default();
        line.open();
        line.at(Moment::Flushed);
        line.add(Bytes::from_static(b"one"));
        line.add(Bytes::from_static(b"two"));
        line.wrote(1);
        line.close();
        // Whatever happens: HTTP flushes an error, say.
        assert_eq!(line.at(Moment::Flushed), 1, "the second is dropped");
        assert_eq!(line.due(), Some(&b"ne"[..]));
        line.wrote(2);
        assert_eq!(line.due(), None);
    }

    /// What HTTP does above a connection: it buffers messages, and writes as much of them as there is room for.
    #[derive(Clone, Debug)]
    enum Step {
        /// An interim response is heard.
        Hears,
        /// HTTP asks for the body itself.
        Continues,
        /// The response is there, and the next request begins.
        Answers,
        /// So much may be written.
        Room(usize),
    }

    /// HTTP writes what it has buffered, or flushes; `room` is what the peer takes.
    fn turn(line: &mut Line, buffer: &mut Vec<u8>, out: &mut Vec<u8>, mut room: usize) {
        loop {
            let moment = if buffer.is_empty() { Moment::Flushed } else { Moment::Writes };
            line.at(moment);
            while let Some(piece) = line.due().map(<[u8]>::to_vec) {
                let written = piece.len().min(room);
                if written == 0 {
                    return;
                }
                out.extend(piece.iter().take(written));
                line.wrote(written);
                room -= written;
            }
            line.passed(moment);
            if moment == Moment::Flushed || room == 0 {
                return;
            }
            let written = buffer.len().min(room);
            out.extend(buffer.drain(..written));
            room -= written;
        }
    }

    fn step() -> impl Strategy<Value = Step> {
        let room = prop_oneof![0..12_usize, Just(1000)].prop_map(Step::Room);
        prop_oneof![2 => Just(Step::Hears), 1 => Just(Step::Continues), 2 => Just(Step::Answers), 4 => room]
    }

    proptest! {
        /// Messages are whole, and an interim response stands before its own response and after the one before.
        #[test]
        fn no_message_is_ever_within_another(steps in proptest::collection::vec(step(), 0..60)) {
            let (mut line, mut buffer, mut out) = (Line::default(), Vec::new(), Vec::new());
            let mut request = 0;
            line.open();
            for step in steps {
                match step {
                    Step::Hears => line.add(Bytes::from(format!("<i{request}>"))),
                    Step::Continues => buffer.extend(format!("<c{request}>").into_bytes()),
                    Step::Answers => {
                        line.close();
                        buffer.extend(format!("<response{request}>").into_bytes());
                        // HTTP hands on the next request when it has written all of the head; bodies may still follow.
                        turn(&mut line, &mut buffer, &mut out, 3);
                        request += 1;
                        line.open();
                    }
                    Step::Room(room) => turn(&mut line, &mut buffer, &mut out, room),
                }
            }
            turn(&mut line, &mut buffer, &mut out, usize::MAX);
            let text = String::from_utf8(out).expect("text");
            let mut answered = 0;
            for message in text.split_inclusive('>') {
                let message = message.strip_prefix('<').and_then(|rest| rest.strip_suffix('>'));
                let message = message.expect("a whole message");
                prop_assert!(!message.contains('<'), "one within another: {text}");
                let digits = message.trim_start_matches(char::is_alphabetic);
                prop_assert_eq!(digits.parse::<u32>().expect("a number"), answered, "{}", text);
                answered += u32::from(message.starts_with("response"));
            }
            prop_assert_eq!(answered, request, "every response came: {}", text);
        }
    }
}
