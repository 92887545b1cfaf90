//! The wire format: a message is a row of numbered fields.

/// Why bytes are no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum WireError {
    #[error("it ends within a field")]
    Truncated,
    #[error("a number has more than 64 bits")]
    Overlong,
    #[error("there is no wire type {0}")]
    Type(u64),
    #[error("field number {0} is out of range")]
    Number(u64),
    #[error("a field has another wire type than its kind")]
    Mismatch,
    #[error("a text is not UTF-8")]
    Utf8,
}

/// A field's value as it stands on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wire<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
    /// Of four or eight bytes: no field that we know is of this type.
    Fixed,
}

impl<'a> Wire<'a> {
    pub(super) fn bytes(self) -> Result<&'a [u8], WireError> {
        match self {
            Wire::Bytes(bytes) => Ok(bytes),
            _ => Err(WireError::Mismatch),
        }
    }

    pub(super) fn text(self) -> Result<&'a str, WireError> {
        std::str::from_utf8(self.bytes()?).map_err(|_| WireError::Utf8)
    }

    pub(super) fn varint(self) -> Result<u64, WireError> {
        match self {
            Wire::Varint(value) => Ok(value),
            _ => Err(WireError::Mismatch),
        }
    }

    /// `int32` and `int64`: negative ones are sign-extended to 64 bits.
    pub(super) fn int(self) -> Result<i64, WireError> {
        self.varint().map(u64::cast_signed)
    }
}

/// The fields of a message in their order; ends after the first error.
pub(super) fn fields(mut bytes: &[u8]) -> impl Iterator<Item = Result<(u32, Wire<'_>), WireError>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let field = field(&mut bytes);
        if field.is_err() {
            bytes = &[];
        }
        Some(field)
    })
}

fn field<'a>(bytes: &mut &'a [u8]) -> Result<(u32, Wire<'a>), WireError> {
    let tag = varint(bytes)?;
    let number = u32::try_from(tag >> 3).ok().filter(|number| *number > 0);
    let number = number.ok_or(WireError::Number(tag >> 3))?;
    let value = match tag & 7 {
        0 => Wire::Varint(varint(bytes)?),
        1 => take(bytes, 8).map(|_| Wire::Fixed)?,
        2 => {
            let length = usize::try_from(varint(bytes)?).map_err(|_| WireError::Truncated)?;
            Wire::Bytes(take(bytes, length)?)
        }
        5 => take(bytes, 4).map(|_| Wire::Fixed)?,
        other => return Err(WireError::Type(other)),
    };
    Ok((number, value))
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Result<&'a [u8], WireError> {
    let (taken, rest) = bytes.split_at_checked(length).ok_or(WireError::Truncated)?;
    *bytes = rest;
    Ok(taken)
}

/// Seven bits a byte, the lowest first.
pub(super) fn varint(bytes: &mut &[u8]) -> Result<u64, WireError> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = take(bytes, 1)?[0];
        let bits = u64::from(byte & 0x7f);
        if shift == 63 && bits > 1 {
            return Err(WireError::Overlong);
        }
        value |= bits << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(WireError::Overlong)
}
