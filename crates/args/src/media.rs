//! Media types as header fields have them (RFC 9110, section 8.3).

use crate::BodyKind;

/// A media type, with the parameters that mean something here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct MediaType {
    /// `type/subtype` in lower case.
    pub(crate) essence: String,
    charset: Option<String>,
    /// Where the parts of a form are parted.
    pub(crate) boundary: Option<String>,
}

impl MediaType {
    /// Reads one; what is wrong in it is as if it were not there.
    pub(crate) fn read(text: &str) -> Self {
        let (essence, mut rest) = text.split_once(';').unwrap_or((text, ""));
        let mut media = Self { essence: essence.trim().to_ascii_lowercase(), ..Self::default() };
        while let Some(((name, value), behind)) = parameter(rest) {
            rest = behind;
            let kept = match name.as_str() {
                "charset" => &mut media.charset,
                "boundary" => &mut media.boundary,
                _ => continue,
            };
            if kept.is_none() {
                *kept = Some(value);
            }
        }
        media
    }

    /// What a body of this type is.
    pub(crate) fn kind(&self) -> BodyKind {
        let (main, sub) = self.essence.split_once('/').unwrap_or_default();
        match (main, sub) {
            ("application", "json") => BodyKind::Json,
            ("application", "msgpack" | "x-msgpack" | "vnd.msgpack") => BodyKind::Msgpack,
            ("application", "cbor") => BodyKind::Cbor,
            ("application", "x-www-form-urlencoded") => BodyKind::Form,
            ("multipart", "form-data") => BodyKind::Multipart,
            _ if sub.ends_with("+json") => BodyKind::Json,
            _ if sub.ends_with("+msgpack") => BodyKind::Msgpack,
            _ if sub.ends_with("+cbor") => BodyKind::Cbor,
            ("text", _) => BodyKind::Text,
            _ => BodyKind::Other,
        }
    }

    /// Whether its text is UTF-8, as far as it says.
    pub(crate) fn is_utf8(&self) -> bool {
        let charset = self.charset.as_deref().unwrap_or("utf-8");
        ["utf-8", "utf8", "us-ascii"].iter().any(|known| charset.eq_ignore_ascii_case(known))
    }
}

/// The next `name=value` or `name="value"` of a list with `;` between; the rest behind it.
fn parameter(text: &str) -> Option<((String, String), &str)> {
    let text = text.trim_start_matches([' ', '\t', ';']);
    let (name, value) = text.split_once('=')?;
    let name = name.trim().to_ascii_lowercase();
    let Some(quoted) = value.strip_prefix('"') else {
        let end = value.find(';').unwrap_or(value.len());
        return Some(((name, value[..end].trim().to_owned()), &value[end..]));
    };
    let mut read = String::new();
    let mut letters = quoted.char_indices();
    while let Some((place, letter)) = letters.next() {
        match letter {
            '"' => return Some(((name, read), &quoted[place + 1..])),
            '\\' => read.extend(letters.next().map(|(_, escaped)| escaped)),
            letter => read.push(letter),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_is_read_with_its_parameters_in_any_case_and_quotes() {
        let media = MediaType::read(
            "Multipart/Form-Data; x=\"a;b\\\"c\"; Boundary=\"--x;y\"; charset=UTF-8",
        );
        assert_eq!(
            (media.essence.as_str(), media.boundary.as_deref()),
            ("multipart/form-data", Some("--x;y"))
        );
        assert!(media.is_utf8() && media.kind() == BodyKind::Multipart);
        assert!(!MediaType::read("text/plain; charset=iso-8859-1").is_utf8());
        for broken in ["", ";", "a/b;x", "a/b;=", "a/b;x=\"", "a/b;x=\"\\", "\u{e9};\u{e9}=\u{e9}"]
        {
            assert_eq!(MediaType::read(broken).boundary, None, "{broken}");
        }
    }

    #[test]
    fn a_body_is_what_its_type_says() {
        for (text, kind) in [
            ("application/json", BodyKind::Json),
            ("application/problem+JSON; charset=x", BodyKind::Json),
            ("application/vnd.msgpack", BodyKind::Msgpack),
            ("application/x+cbor", BodyKind::Cbor),
            ("application/x-www-form-urlencoded;charset=utf-8", BodyKind::Form),
            ("text/xml", BodyKind::Text),
            ("application/xml", BodyKind::Other),
            ("multipart/mixed", BodyKind::Other),
            ("json", BodyKind::Other),
            ("", BodyKind::Other),
        ] {
            assert_eq!(MediaType::read(text).kind(), kind, "{text}");
        }
        for kind in BodyKind::ALL {
            assert_eq!(MediaType::read(kind.media_type()).kind(), kind);
        }
    }
}
