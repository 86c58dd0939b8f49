//! Small text files with a checksum: their last line is `crc32c` and that of the bytes of the lines above, in hexadecimal.

/// The text with that line.
pub fn sealed(mut text: String) -> String {
    let checksum = crc32c::crc32c(text.as_bytes());
    text.push_str(&format!("crc32c {checksum:08x}\n"));
    text
}

/// What is above that line; `None` if there is none, or it is not that of what is above.
pub fn unsealed(text: &str) -> Option<&str> {
    let (body, checksum) = text.strip_suffix('\n')?.rsplit_once("crc32c ")?;
    (format!("{:08x}", crc32c::crc32c(body.as_bytes())) == checksum).then_some(body)
}
