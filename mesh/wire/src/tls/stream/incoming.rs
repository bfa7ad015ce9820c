//! What we receive: read by the many, opened in place, handed on.

use std::{
    io,
    ops::Range,
    pin::Pin,
    task::{Context, Poll, ready},
};

use rustls::AlertDescription;
use tokio::io::{AsyncRead, ReadBuf};

use super::{
    Keys, buffers,
    outgoing::Outgoing,
    record::{self, Content, Failure, HEADER, Opener},
};

/// Post-handshake messages may come in parts. Larger than any ticket.
const MAX_MESSAGE: usize = 64 * 1024;
/// Key updates without a byte of data between them; more is an attack on our processor.
const MAX_KEY_UPDATES: u32 = 32;
const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;

/// Records on their way in.
///
/// `read by the caller` … `plain: opened, not yet read` … `start: sealed` … `end: free`
pub(super) struct Incoming {
    opener: Opener,
    /// Of the thread's length while bytes come in; just the rest of a record at rest; empty at best.
    buffer: Vec<u8>,
    plain: Range<usize>,
    start: usize,
    end: usize,
    /// The beginning of a post-handshake message.
    message: Vec<u8>,
    key_updates: u32,
    over: Option<Over>,
}

/// Nothing more will be read.
enum Over {
    /// `close_notify`, or the socket's end.
    Closed,
    Failed(Failure),
}

impl Incoming {
    /// `early`: opened bytes that came with the handshake. `sealed`: the bytes after them. `closed`: nothing
    /// will follow.
    pub(super) fn new(opener: Opener, early: &[u8], sealed: &[u8], closed: bool) -> Self {
        let mut buffer = Vec::with_capacity(early.len() + sealed.len());
        buffer.extend_from_slice(early);
        buffer.extend_from_slice(sealed);
        Self {
            opener,
            plain: 0..early.len(),
            start: early.len(),
            end: buffer.len(),
            buffer,
            message: Vec::new(),
            key_updates: 0,
            over: closed.then_some(Over::Closed),
        }
    }

    pub(super) fn poll_read(
        &mut self,
        io: &mut (impl AsyncRead + Unpin),
        keys: &mut dyn Keys,
        outgoing: &mut Outgoing,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = out.filled().len();
        loop {
            self.hand_on(out);
            if out.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            let progress = match &self.over {
                None => self.open_next(keys, outgoing),
                Some(_) => Ok(false),
            };
            match progress {
                Ok(true) => continue,
                Ok(false) => {}
                Err(failure) => {
                    outgoing.fail(&failure, keys);
                    self.over = Some(Over::Failed(failure));
                }
            }
            if out.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
            match &self.over {
                None => ready!(self.poll_fill(io, cx))?,
                Some(Over::Closed) => return Poll::Ready(Ok(())),
                Some(Over::Failed(failure)) => {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, failure.clone())));
                }
            }
        }
    }

    /// Copies opened bytes to who reads.
    fn hand_on(&mut self, out: &mut ReadBuf<'_>) {
        let length = self.plain.len().min(out.remaining());
        let to = self.plain.start + length;
        out.put_slice(self.buffer.get(self.plain.start..to).unwrap_or_default());
        self.plain.start = to;
    }

    /// Opens the next record; false when it is not all there.
    fn open_next(&mut self, keys: &mut dyn Keys, outgoing: &mut Outgoing) -> Result<bool, Failure> {
        let sealed = self.buffer.get_mut(self.start..self.end).unwrap_or_default();
        let Some(length) = record::length(sealed)? else { return Ok(false) };
        let Some(record) = sealed.get_mut(..length) else { return Ok(false) };
        let (content, length_inside) = self.opener.open(record)?;
        let inside = self.start + HEADER..self.start + HEADER + length_inside;
        self.start += length;
        match content {
            Content::Data if !self.message.is_empty() => return Err(Failure::Unexpected),
            Content::Data => {
                if !inside.is_empty() {
                    self.key_updates = 0;
                }
                self.plain = inside;
            }
            Content::Alert => self.alert(inside)?,
            Content::Handshake => self.handshake(inside, keys, outgoing)?,
        }
        Ok(self.over.is_none())
    }

    fn alert(&mut self, inside: Range<usize>) -> Result<(), Failure> {
        let Some(&[_, alert]) = self.buffer.get(inside) else { return Err(Failure::Unreadable) };
        let alert = AlertDescription::from(alert);
        if alert == AlertDescription::CloseNotify {
            self.over = Some(Over::Closed);
        } else if alert != AlertDescription::UserCanceled {
            // That one only announces a close_notify.
            return Err(Failure::Told(alert));
        }
        Ok(())
    }

    fn handshake(
        &mut self,
        inside: Range<usize>,
        keys: &mut dyn Keys,
        outgoing: &mut Outgoing,
    ) -> Result<(), Failure> {
        let part = self.buffer.get(inside).unwrap_or_default();
        // An empty part of a message is forbidden, and would be a loop for nothing.
        if part.is_empty() || self.message.len() + part.len() > MAX_MESSAGE {
            return Err(Failure::Unexpected);
        }
        self.message.extend_from_slice(part);
        while let Some((&[kind, a, b, c], rest)) = self.message.split_first_chunk() {
            let length =
                usize::try_from(u32::from_be_bytes([0, a, b, c])).map_err(|_| Failure::Unreadable)?;
            let Some(body) = rest.get(..length) else { return Ok(()) };
            let after = rest.get(length..).unwrap_or_default();
            match (kind, body) {
                (NEW_SESSION_TICKET, ticket) => keys.ticket(ticket)?,
                // The key changes with the next record: nothing may follow in this one.
                (KEY_UPDATE, &[wanted @ (0 | 1)]) if after.is_empty() => {
                    self.key_updates += 1;
                    if self.key_updates > MAX_KEY_UPDATES {
                        return Err(Failure::Unexpected);
                    }
                    self.opener = keys.next_opener()?;
                    if wanted == 1 {
                        outgoing
                            .answer_key_update(keys)
                            .map_err(|error| Failure::Crypto(error.to_string()))?;
                    }
                }
                (KEY_UPDATE, [_]) => return Err(Failure::Unexpected),
                (KEY_UPDATE, _) => return Err(Failure::Unreadable),
                _ => return Err(Failure::Unexpected),
            }
            self.message.drain(..4 + length);
        }
        Ok(())
    }

    /// Reads what the socket has, into the thread's buffer.
    fn poll_fill(&mut self, io: &mut (impl AsyncRead + Unpin), cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.unfold();
        let mut free = ReadBuf::new(self.buffer.get_mut(self.end..).unwrap_or_default());
        let read = Pin::new(io).poll_read(cx, &mut free);
        let length = free.filled().len();
        self.end += length;
        match read {
            Poll::Ready(Ok(())) if length == 0 => {
                self.fold();
                // Without a close_notify: the peer is gone, or somebody cut the connection.
                Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()))
            }
            Poll::Ready(Ok(())) => Poll::Ready(Ok(())),
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => {
                self.fold();
                Poll::Pending
            }
        }
    }

    /// Brings what is left of the sealed bytes to the front of a whole buffer.
    fn unfold(&mut self) {
        let left = self.start..self.end;
        if self.buffer.len() == buffers::SIZE {
            self.buffer.copy_within(left.clone(), 0);
        } else {
            let mut buffer = buffers::take();
            if let (Some(to), Some(from)) = (buffer.get_mut(..left.len()), self.buffer.get(left.clone())) {
                to.copy_from_slice(from);
            }
            self.buffer = buffer;
        }
        (self.plain, self.start, self.end) = (0..0, 0, left.len());
    }

    /// Gives the thread's buffer back; what is left of a record stays, in a buffer of its own.
    fn fold(&mut self) {
        let left = self.buffer.get(self.start..self.end).unwrap_or_default().to_vec();
        (self.plain, self.start, self.end) = (0..0, 0, left.len());
        buffers::give_back(std::mem::replace(&mut self.buffer, left));
    }

    /// Key updates since the last byte of data.
    #[cfg(test)]
    pub(super) fn key_updates(&self) -> u32 {
        self.key_updates
    }

    /// Bytes of buffer in use.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.buffer.capacity()
    }
}
