//! Protecting records: RFC 8446 section 5. Pure, but for the counting.

use boring::{
    aead::{AeadCtx, Algorithm},
    error::ErrorStack,
};
use rustls::{AlertDescription, ConnectionTrafficSecrets};

/// Type, version, length.
pub(super) const HEADER: usize = 5;
/// The most that one record carries.
pub(super) const MAX_PLAIN: usize = 1 << 14;
/// What protection adds to the content: its type, and the tag.
pub(super) const OVERHEAD: usize = 1 + TAG;
/// What a peer's record may have beyond its content: type, tag, and padding.
const MAX_BODY: usize = MAX_PLAIN + 256;
const TAG: usize = 16;
/// After this many records under one key, another must be taken (RFC 8446 5.5: 2^24.5 for AES-GCM).
const RECORDS_PER_KEY: u64 = 1 << 24;

/// What a record carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    Alert,
    Handshake,
    Data,
}

impl Content {
    fn byte(self) -> u8 {
        match self {
            Self::Alert => 21,
            Self::Handshake => 22,
            Self::Data => 23,
        }
    }

    fn from_byte(byte: u8) -> Option<Self> {
        [Self::Alert, Self::Handshake, Self::Data].into_iter().find(|content| content.byte() == byte)
    }
}

/// Why a connection cannot go on, and what the peer is told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Failure {
    /// The record is not what the peer sealed, or not in its place.
    #[error("a TLS record was altered on its way")]
    Forged,
    /// The record is longer than allowed.
    #[error("a TLS record is longer than allowed")]
    TooLong,
    /// It does not belong here.
    #[error("a TLS message came that does not belong here")]
    Unexpected,
    /// It cannot be read.
    #[error("a TLS message cannot be read")]
    Unreadable,
    /// The peer ended the connection.
    #[error("the peer ended TLS with alert {0:?}")]
    Told(AlertDescription),
    /// The crypto library failed.
    #[error("TLS keys cannot be used: {0}")]
    Crypto(String),
}

impl Failure {
    /// What the peer is told.
    pub(super) fn alert(&self) -> Option<AlertDescription> {
        match self {
            Self::Forged => Some(AlertDescription::BadRecordMac),
            Self::TooLong => Some(AlertDescription::RecordOverflow),
            Self::Unexpected => Some(AlertDescription::UnexpectedMessage),
            Self::Unreadable => Some(AlertDescription::DecodeError),
            Self::Told(_) => None,
            Self::Crypto(_) => Some(AlertDescription::InternalError),
        }
    }
}

impl From<ErrorStack> for Failure {
    fn from(error: ErrorStack) -> Self {
        Self::Crypto(error.to_string())
    }
}

impl From<rustls::Error> for Failure {
    fn from(error: rustls::Error) -> Self {
        Self::Crypto(error.to_string())
    }
}

/// One key, and the number of the next record under it.
struct Protection {
    context: AeadCtx,
    iv: [u8; 12],
    next: u64,
}

impl Protection {
    fn new(secrets: &ConnectionTrafficSecrets, next: u64) -> Result<Self, Failure> {
        let foreign = || Failure::Crypto("the cipher is none of the mesh's".into());
        let (algorithm, key, iv) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (Algorithm::aes_128_gcm(), key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (Algorithm::aes_256_gcm(), key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { .. } => return Err(foreign()),
            _ => return Err(foreign()),
        };
        let iv = iv.as_ref().try_into().map_err(|_| Failure::Crypto("the IV is not of 12 bytes".into()))?;
        Self::with(algorithm, key.as_ref(), iv, next)
    }

    fn with(algorithm: Algorithm, key: &[u8], iv: [u8; 12], next: u64) -> Result<Self, Failure> {
        Ok(Self { context: AeadCtx::new_default_tag(&algorithm, key)?, iv, next })
    }

    /// The nonce of the next record, which is then the last.
    fn nonce(&mut self) -> [u8; 12] {
        let mut nonce = self.iv;
        for (byte, number) in nonce.iter_mut().skip(4).zip(self.next.to_be_bytes()) {
            *byte ^= number;
        }
        // Keys are replaced forty orders of magnitude before it could wrap.
        self.next = self.next.wrapping_add(1);
        nonce
    }
}

/// Seals what we send.
pub(super) struct Sealer {
    protection: Protection,
    records: u64,
}

impl Sealer {
    /// From `secrets`, of which `next` records have been sealed before.
    pub(super) fn new(secrets: &ConnectionTrafficSecrets, next: u64) -> Result<Self, Failure> {
        Ok(Self { protection: Protection::new(secrets, next)?, records: RECORDS_PER_KEY })
    }

    /// Whether the key has done its work.
    pub(super) fn is_worn(&self) -> bool {
        self.protection.next >= self.records
    }

    /// Wears the key out sooner.
    #[cfg(test)]
    pub(super) fn wear(&mut self, records: u64) {
        self.records = records;
    }

    /// Seals `record` in place: room for the header, then the content, then room for [`OVERHEAD`].
    pub(super) fn seal(&mut self, content: Content, record: &mut [u8]) -> Result<(), Failure> {
        let (header, body) = record.split_at_mut_checked(HEADER).ok_or(Failure::TooLong)?;
        let length = u16::try_from(body.len()).map_err(|_| Failure::TooLong)?.to_be_bytes();
        header.copy_from_slice(&[Content::Data.byte(), 3, 3, length[0], length[1]]);
        let plain = body.len().checked_sub(TAG).ok_or(Failure::TooLong)?;
        let (plain, tag) = body.split_at_mut_checked(plain).ok_or(Failure::TooLong)?;
        *plain.last_mut().ok_or(Failure::TooLong)? = content.byte();
        let nonce = self.protection.nonce();
        self.protection.context.seal_in_place_mut(&nonce, plain, tag, header)?;
        Ok(())
    }
}

/// Opens what we receive.
pub(super) struct Opener {
    protection: Protection,
}

impl Opener {
    /// From `secrets`, of which `next` records have been opened before.
    pub(super) fn new(secrets: &ConnectionTrafficSecrets, next: u64) -> Result<Self, Failure> {
        Ok(Self { protection: Protection::new(secrets, next)? })
    }

    /// Opens a whole `record` in place. The content begins after the header and has the length returned.
    pub(super) fn open(&mut self, record: &mut [u8]) -> Result<(Content, usize), Failure> {
        let (header, body) = record.split_at_mut_checked(HEADER).ok_or(Failure::Unreadable)?;
        let sealed = body.len().checked_sub(TAG).ok_or(Failure::Unreadable)?;
        let (sealed, tag) = body.split_at_mut_checked(sealed).ok_or(Failure::Unreadable)?;
        let nonce = self.protection.nonce();
        self.protection
            .context
            .open_in_place_mut(&nonce, sealed, tag, header)
            .map_err(|_| Failure::Forged)?;
        // Zeros after the type are padding; there must be a type.
        let at = sealed.iter().rposition(|&byte| byte != 0).ok_or(Failure::Unexpected)?;
        let content = sealed.get(at).copied().and_then(Content::from_byte).ok_or(Failure::Unexpected)?;
        if at > MAX_PLAIN { Err(Failure::TooLong) } else { Ok((content, at)) }
    }
}

/// The length of the first record of `bytes`, header included; `None` until the header is there.
pub(super) fn length(bytes: &[u8]) -> Result<Option<usize>, Failure> {
    let Some(&[content, major, _, high, low]) = bytes.first_chunk() else { return Ok(None) };
    let body = usize::from(u16::from_be_bytes([high, low]));
    if content != Content::Data.byte() || major != 3 {
        return Err(Failure::Unexpected);
    }
    if body > MAX_BODY { Err(Failure::TooLong) } else { Ok(Some(HEADER + body)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
        digits
            .chunks(2)
            .map(|two| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap())
            .collect()
    }

    /// The client's application key of RFC 8448 section 3.
    fn rfc_protection(next: u64) -> Protection {
        let key = hex("17 42 2d da 59 6e d5 d9 ac d8 90 e3 c6 3f 50 51");
        let iv = hex("5b 78 92 3d ee 08 57 90 33 e5 23 d9").try_into().unwrap();
        Protection::with(Algorithm::aes_128_gcm(), &key, iv, next).unwrap()
    }

    fn rfc_opener(next: u64) -> Opener {
        Opener { protection: rfc_protection(next) }
    }

    /// The client's first record of application data of RFC 8448 section 3: 00 01 … 31.
    fn rfc_record() -> Vec<u8> {
        hex("17 03 03 00 43 a2 3f 70 54 b6 2c 94 d0 af fa fe 82 28 ba 55 cb ef ac ea 42 f9 14 aa 66 bc ab 3f 2b
             98 19 a8 a5 b4 6b 39 5b d5 4a 9a 20 44 1e 2b 62 97 4e 1f 5a 62 92 a2 97 70 14 bd 1e 3d ea e6 3a ee bb
             21 69 49 15 e4")
    }

    #[test]
    fn the_record_of_rfc_8448_is_opened_and_sealed() {
        let plain: Vec<u8> = (0..50).collect();
        let mut record = rfc_record();
        let opened = rfc_opener(0).open(&mut record).unwrap();
        assert_eq!((opened, &record[HEADER..][..50]), ((Content::Data, 50), &plain[..]));

        let mut record = [&[0; HEADER][..], &plain, &[0; OVERHEAD]].concat();
        Sealer { protection: rfc_protection(0), records: 1 }.seal(Content::Data, &mut record).unwrap();
        assert_eq!(record, rfc_record());
    }

    #[test]
    fn any_changed_bit_is_noticed() {
        let record = rfc_record();
        for bit in 0..record.len() * 8 {
            let mut forged = record.clone();
            forged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(rfc_opener(0).open(&mut forged), Err(Failure::Forged), "{bit}");
        }
    }

    #[test]
    fn a_record_out_of_its_place_or_cut_short_is_noticed() {
        assert_eq!(rfc_opener(1).open(&mut rfc_record()), Err(Failure::Forged));
        for length in 0..rfc_record().len() {
            let mut cut = rfc_record();
            cut.truncate(length);
            rfc_opener(0).open(&mut cut).unwrap_err();
        }
    }

    /// Seals `inner` as it is, type and padding included.
    fn sealed(inner: &[u8]) -> Vec<u8> {
        let mut protection = rfc_protection(0);
        let length = u16::try_from(inner.len() + TAG).unwrap().to_be_bytes();
        let mut record = [&[23, 3, 3, length[0], length[1]], inner, &[0; TAG]].concat();
        let (header, body) = record.split_at_mut(HEADER);
        let (plain, tag) = body.split_at_mut(inner.len());
        let nonce = protection.nonce();
        protection.context.seal_in_place_mut(&nonce, plain, tag, header).unwrap();
        record
    }

    #[test]
    fn padding_is_taken_off_and_what_has_no_type_is_refused() {
        let open = |inner: &[u8]| rfc_opener(0).open(&mut sealed(inner));
        assert_eq!(open(b"ab\x17"), Ok((Content::Data, 2)));
        assert_eq!(open(b"ab\x17\0\0\0"), Ok((Content::Data, 2)));
        assert_eq!(open(b"a\0\x16\0"), Ok((Content::Handshake, 2)));
        assert_eq!(open(b"\x17"), Ok((Content::Data, 0)));
        assert_eq!(open(b"\0\0\0"), Err(Failure::Unexpected));
        assert_eq!(open(b""), Err(Failure::Unexpected));
        assert_eq!(open(b"a\x14"), Err(Failure::Unexpected));
        assert_eq!(open(b"a\x18"), Err(Failure::Unexpected));
        let largest = [&vec![7; MAX_PLAIN][..], &[23]].concat();
        assert_eq!(open(&largest), Ok((Content::Data, MAX_PLAIN)));
        assert_eq!(open(&[&[7][..], &largest].concat()), Err(Failure::TooLong));
    }

    #[test]
    fn a_header_says_how_long_its_record_is() {
        assert_eq!(length(&[]), Ok(None));
        assert_eq!(length(&[23, 3, 3, 0]), Ok(None));
        assert_eq!(length(&[23, 3, 3, 0x41, 0]), Ok(Some(HEADER + MAX_BODY)));
        assert_eq!(length(&[23, 3, 3, 0x41, 1]), Err(Failure::TooLong));
        for other in [20, 21, 22, 24, 0] {
            assert_eq!(length(&[other, 3, 3, 0, 1]), Err(Failure::Unexpected));
        }
        assert_eq!(length(b"GET / "), Err(Failure::Unexpected));
    }

    #[test]
    fn numbers_reach_every_byte_of_the_nonce() {
        let mut protection = rfc_protection(0x0102_0304_0506_0708);
        let nonce = protection.nonce();
        let number: Vec<u8> = nonce.iter().zip(protection.iv).map(|(one, other)| one ^ other).collect();
        assert_eq!(number, [0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
    }
}
