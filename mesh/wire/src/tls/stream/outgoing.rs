//! What we send: gathered, sealed, written.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use rustls::AlertDescription;
use tokio::io::AsyncWrite;

use super::{
    Keys, buffers,
    record::{Content, Failure, HEADER, MAX_PLAIN, OVERHEAD, Sealer},
};

/// `key_update`, one byte long: `update_not_requested`.
const KEY_UPDATE: [u8; 5] = [24, 0, 0, 1, 0];
/// An alert's level.
const WARNING: u8 = 1;
const FATAL: u8 = 2;
/// Kept free for what must always fit: an alert and a key update.
const RESERVE: usize = 128;

/// Records on their way out.
///
/// `sealed up to here` … `open record: header, content so far` … `free`
pub(super) struct Outgoing {
    sealer: Sealer,
    /// Of the thread's length while there is something in it, empty otherwise.
    buffer: Vec<u8>,
    /// Written to the socket up to here.
    written: usize,
    /// Sealed up to here.
    sealed: usize,
    /// Filled up to here; beyond `sealed`, an open record.
    filled: usize,
    urgent: bool,
    ended: bool,
}

impl Outgoing {
    pub(super) fn new(sealer: Sealer) -> Self {
        Self { sealer, buffer: Vec::new(), written: 0, sealed: 0, filled: 0, urgent: false, ended: false }
    }

    /// Whether nothing more fits.
    pub(super) fn is_full(&self) -> bool {
        self.room() == 0
    }

    /// Whether there is something that nobody else will flush.
    pub(super) fn is_urgent(&self) -> bool {
        self.urgent
    }

    /// Content bytes that still fit.
    fn room(&self) -> usize {
        let taken = if self.is_open() { self.filled } else { self.filled + HEADER };
        buffers::SIZE.saturating_sub(taken + OVERHEAD + RESERVE)
    }

    fn is_open(&self) -> bool {
        self.filled > self.sealed
    }

    /// Takes as much of `content` as fits, and seals what is complete.
    pub(super) fn append(&mut self, content: &[u8], keys: &mut dyn Keys) -> io::Result<usize> {
        if self.ended {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let mut taken = 0;
        while taken < content.len() && self.room() > 0 {
            if !self.is_open() {
                self.filled += HEADER;
            }
            let carried = self.filled - self.sealed - HEADER;
            let rest = content.get(taken..).unwrap_or_default();
            let length = rest.len().min(MAX_PLAIN - carried).min(self.room());
            self.put(rest.get(..length).unwrap_or_default())?;
            taken += length;
            if carried + length == MAX_PLAIN {
                self.seal(Content::Data)?;
                self.renew_if_worn(keys)?;
            }
        }
        Ok(taken)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.buffer.is_empty() {
            self.buffer = buffers::take();
        }
        let room = self.buffer.get_mut(self.filled..self.filled + bytes.len());
        room.ok_or(io::ErrorKind::OutOfMemory)?.copy_from_slice(bytes);
        self.filled += bytes.len();
        Ok(())
    }

    fn seal(&mut self, content: Content) -> io::Result<()> {
        self.filled += OVERHEAD;
        let record = self.buffer.get_mut(self.sealed..self.filled).ok_or(io::ErrorKind::OutOfMemory)?;
        self.sealer.seal(content, record).map_err(io::Error::other)?;
        self.sealed = self.filled;
        Ok(())
    }

    /// Seals the open record, if there is one.
    fn seal_open(&mut self, keys: &mut dyn Keys) -> io::Result<()> {
        if self.is_open() {
            self.seal(Content::Data)?;
            self.renew_if_worn(keys)?;
        }
        Ok(())
    }

    fn renew_if_worn(&mut self, keys: &mut dyn Keys) -> io::Result<()> {
        if self.sealer.is_worn() { self.update_key(keys) } else { Ok(()) }
    }

    /// Says that our key changes, and changes it.
    fn update_key(&mut self, keys: &mut dyn Keys) -> io::Result<()> {
        self.message(Content::Handshake, &KEY_UPDATE)?;
        self.sealer = keys.next_sealer().map_err(io::Error::other)?;
        Ok(())
    }

    /// A record of its own. There is always room in the reserve: each kind is sent once between two drains.
    pub(super) fn message(&mut self, content: Content, message: &[u8]) -> io::Result<()> {
        self.filled += HEADER;
        self.put(message)?;
        self.seal(content)
    }

    /// Answers the peer's wish for a new key of ours. Further wishes before the answer has left are granted
    /// by that answer.
    pub(super) fn answer_key_update(&mut self, keys: &mut dyn Keys) -> io::Result<()> {
        if self.urgent || self.ended {
            return Ok(());
        }
        self.seal_open(keys)?;
        self.update_key(keys)?;
        self.urgent = true;
        Ok(())
    }

    /// Tells the peer why we cannot go on; nothing is sent after it.
    pub(super) fn fail(&mut self, failure: &Failure, keys: &mut dyn Keys) {
        if let Some(alert) = failure.alert()
            && self.end(FATAL, alert, keys).is_ok()
        {
            self.urgent = true;
        }
        self.ended = true;
    }

    /// `close_notify`, once.
    pub(super) fn say_goodbye(&mut self, keys: &mut dyn Keys) -> io::Result<()> {
        self.end(WARNING, AlertDescription::CloseNotify, keys)
    }

    fn end(&mut self, level: u8, alert: AlertDescription, keys: &mut dyn Keys) -> io::Result<()> {
        if self.ended {
            return Ok(());
        }
        self.seal_open(keys)?;
        self.ended = true;
        self.message(Content::Alert, &[level, alert.into()])
    }

    /// Writes all of it, and gives the buffer back.
    pub(super) fn poll_drain(
        &mut self,
        io: &mut (impl AsyncWrite + Unpin),
        keys: &mut dyn Keys,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        self.seal_open(keys)?;
        while self.written < self.sealed {
            let rest = self.buffer.get(self.written..self.sealed).unwrap_or_default();
            let written = ready!(Pin::new(&mut *io).poll_write(cx, rest))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += written;
        }
        if !self.buffer.is_empty() {
            buffers::give_back(std::mem::take(&mut self.buffer));
        }
        (self.written, self.sealed, self.filled, self.urgent) = (0, 0, 0, false);
        Poll::Ready(Ok(()))
    }

    /// Takes the next key without a word.
    #[cfg(test)]
    pub(super) fn replace_key(&mut self, keys: &mut dyn Keys) {
        self.sealer = keys.next_sealer().unwrap();
    }

    /// Bytes of buffer in use.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.buffer.capacity()
    }

    /// Wears the key out sooner.
    #[cfg(test)]
    pub(super) fn wear(&mut self, records: u64) {
        self.sealer.wear(records);
    }
}
