//! Name/value header blocks: one zlib stream per direction for the whole session, seeded with a dictionary.

use std::sync::LazyLock;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};

use super::ProtocolError;

/// Names in lower case, with their values; a name that has several values stands once for each.
pub type Headers = Vec<(String, String)>;

/// No header block of an exec is even a hundredth of this.
const MAX_BLOCK: usize = 64 * 1024;

/// The words of the dictionary, each preceded there by its length in four bytes.
const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language \
    accept-ranges age allow authorization cache-control connection content-base content-encoding content-language \
    content-length content-location content-md5 content-range content-type date etag expect expires from host \
    if-match if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma \
    proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade \
    user-agent vary via warning www-authenticate method get status 200_OK version HTTP/1.1 url public set-cookie \
    keep-alive origin";

/// What follows the words, without lengths.
const TAIL: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 \
    Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 \
    Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept \
    Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,\
    application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=\
    utf-8charset=iso-8859-1,utf-,*,enq=0.";

/// "Compression": the dictionary both ends know.
static DICTIONARY: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut bytes = Vec::with_capacity(1423);
    for word in WORDS.split(' ') {
        put_string(&mut bytes, &word.replace('_', " "));
    }
    bytes.extend_from_slice(TAIL.as_bytes());
    bytes
});

/// Reads the header blocks of one direction, in order.
#[derive(Debug)]
pub(super) struct Inflater(Decompress);

impl Inflater {
    pub(super) fn new() -> Self {
        Inflater(Decompress::new(true))
    }

    /// The headers in one compressed block.
    pub(super) fn block(&mut self, compressed: &[u8]) -> Result<Headers, ProtocolError> {
        parse(&self.inflate(compressed)?)
    }

    fn inflate(&mut self, mut input: &[u8]) -> Result<Vec<u8>, ProtocolError> {
        let mut plain = Vec::with_capacity(1024);
        loop {
            let (in_before, len_before) = (self.0.total_in(), plain.len());
            let outcome = self.0.decompress_vec(input, &mut plain, FlushDecompress::Sync);
            let used = usize::try_from(self.0.total_in() - in_before).unwrap_or(input.len());
            input = input.get(used..).unwrap_or_default();
            if let Err(error) = outcome {
                error
                    .needs_dictionary()
                    .ok_or(ProtocolError::Headers("no zlib data"))?;
                self.0
                    .set_dictionary(&DICTIONARY)
                    .map_err(|_| ProtocolError::Headers("another dictionary"))?;
                continue;
            }
            if plain.len() > MAX_BLOCK {
                return Err(ProtocolError::Headers("too large"));
            }
            if plain.len() == plain.capacity() {
                plain.reserve(plain.len());
            } else if input.is_empty() {
                return Ok(plain);
            } else if used == 0 && plain.len() == len_before {
                return Err(ProtocolError::Headers("data after its end"));
            }
        }
    }
}

/// Writes the header blocks of one direction, in order.
#[derive(Debug)]
pub(super) struct Deflater {
    zlib: Compress,
}

impl Deflater {
    pub(super) fn new() -> Self {
        let mut zlib = Compress::new(Compression::default(), true);
        zlib.set_dictionary(&DICTIONARY)
            .expect("a new compressor takes a dictionary");
        Deflater { zlib }
    }

    /// The compressed block of these headers.
    pub(super) fn block(&mut self, headers: &Headers) -> Vec<u8> {
        let plain = render(headers);
        let mut compressed = Vec::with_capacity(plain.len() / 2 + 64);
        let mut input = plain.as_slice();
        loop {
            let before = self.zlib.total_in();
            // Compressing into memory fails only on a state that this type never gets into.
            let done = self
                .zlib
                .compress_vec(input, &mut compressed, FlushCompress::Sync);
            let used = usize::try_from(self.zlib.total_in() - before).unwrap_or(input.len());
            input = input.get(used..).unwrap_or_default();
            // A flush is complete when there was room left over.
            if done.is_err() || (input.is_empty() && compressed.len() < compressed.capacity()) {
                return compressed;
            }
            compressed.reserve(compressed.len().max(64));
        }
    }
}

/// "Name/Value Header Block": a count, then names and values, each with its length; several values of one name are
/// joined by NUL.
fn parse(mut plain: &[u8]) -> Result<Headers, ProtocolError> {
    let count = take_u32(&mut plain)?;
    let mut headers = Headers::new();
    for _ in 0..count {
        let name = take_string(&mut plain)?.to_ascii_lowercase();
        let values = take_string(&mut plain)?;
        for value in values.split('\0') {
            headers.push((name.clone(), value.to_owned()));
        }
    }
    Ok(headers)
}

fn render(headers: &Headers) -> Vec<u8> {
    let mut merged: Vec<(&str, String)> = Vec::new();
    for (name, value) in headers {
        match merged.iter_mut().find(|(seen, _)| seen == name) {
            Some((_, values)) => {
                values.push('\0');
                values.push_str(value);
            }
            None => merged.push((name, value.clone())),
        }
    }
    let mut plain = Vec::new();
    plain.extend_from_slice(&length(merged.len()));
    for (name, values) in merged {
        put_string(&mut plain, name);
        put_string(&mut plain, &values);
    }
    plain
}

fn take_u32(plain: &mut &[u8]) -> Result<u32, ProtocolError> {
    let (head, rest) = plain
        .split_first_chunk::<4>()
        .ok_or(ProtocolError::Headers("it ends early"))?;
    *plain = rest;
    Ok(u32::from_be_bytes(*head))
}

fn take_string(plain: &mut &[u8]) -> Result<String, ProtocolError> {
    let length = take_u32(plain)? as usize;
    let (head, rest) = plain
        .split_at_checked(length)
        .ok_or(ProtocolError::Headers("it ends early"))?;
    *plain = rest;
    Ok(String::from_utf8_lossy(head).into_owned())
}

fn put_string(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend_from_slice(&length(text.len()));
    bytes.extend_from_slice(text.as_bytes());
}

fn length(len: usize) -> [u8; 4] {
    u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dictionary_is_the_one_of_the_specification() {
        assert_eq!(DICTIONARY.len(), 1423);
        let (mut a, mut b) = (1u32, 0u32);
        for byte in DICTIONARY.iter() {
            a = (a + u32::from(*byte)) % 65521;
            b = (b + a) % 65521;
        }
        assert_eq!(
            b << 16 | a,
            0xe3c6_a7c2,
            "its Adler-32, which every SPDY/3 zlib stream carries"
        );
    }

    #[test]
    fn blocks_survive_compression_one_after_the_other() {
        let (mut deflater, mut inflater) = (Deflater::new(), Inflater::new());
        let long = "x".repeat(5000);
        for value in ["stdin", "stdout", "", long.as_str()] {
            let headers = vec![
                ("streamtype".to_owned(), value.to_owned()),
                ("a".to_owned(), "b".to_owned()),
            ];
            let block = deflater.block(&headers);
            assert_eq!(inflater.block(&block).unwrap(), headers);
        }
    }

    #[test]
    fn several_values_of_a_name_stay_several() {
        let headers: Headers = vec![
            ("n".into(), "1".into()),
            ("n".into(), "2".into()),
            ("m".into(), "3".into()),
        ];
        assert_eq!(parse(&render(&headers)).unwrap(), headers);
    }

    #[test]
    fn a_block_that_grows_without_bound_is_refused() {
        let mut zlib = Compress::new(Compression::best(), true);
        zlib.set_dictionary(&DICTIONARY).unwrap();
        let mut bomb = Vec::with_capacity(64 * 1024);
        zlib.compress_vec(&vec![0; 8 << 20], &mut bomb, FlushCompress::Sync)
            .unwrap();
        assert_eq!(
            Inflater::new().block(&bomb),
            Err(ProtocolError::Headers("too large"))
        );
    }
}
