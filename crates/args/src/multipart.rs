//! `multipart/form-data`: the fields of a form; its files are not taken.

use std::convert::Infallible;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::stream;
use multer::Multipart;

use crate::ReadError;

/// Why a form is not taken.
#[derive(Debug)]
pub(crate) enum FormError {
    Read(ReadError),
    /// A field is a file.
    File,
}

/// Reads the fields of a form, in their order. At most `most` of them.
pub(crate) fn read(
    body: &Bytes,
    boundary: &str,
    most: usize,
) -> Result<Vec<(String, String)>, FormError> {
    let whole = stream::iter([Ok::<_, Infallible>(body.clone())]);
    let mut form = Multipart::new(whole, boundary);
    let mut fields = Vec::new();
    while let Some(field) = at_once(form.next_field())? {
        if field.file_name().is_some() {
            return Err(FormError::File);
        }
        let Some(name) = field.name().map(str::to_owned) else {
            return Err(malformed("a part has no name"));
        };
        if fields.len() == most {
            return Err(FormError::Read(ReadError::TooMany(most)));
        }
        let value = at_once(field.bytes())?;
        fields.push((name, String::from_utf8_lossy(&value).into_owned()));
    }
    Ok(fields)
}

/// What is waited for is there: the body is whole.
fn at_once<T>(reading: impl Future<Output = multer::Result<T>>) -> Result<T, FormError> {
    match reading.now_or_never() {
        Some(read) => read.map_err(|error| malformed(&error.to_string())),
        None => Err(malformed("it breaks off")),
    }
}

fn malformed(reason: &str) -> FormError {
    FormError::Read(ReadError::malformed(reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(parts: &[(&str, &str)]) -> Bytes {
        let part = |(head, value): &(&str, &str)| {
            format!("--x\r\nContent-Disposition: form-data{head}\r\n\r\n{value}\r\n")
        };
        format!("{}--x--\r\n", parts.iter().map(part).collect::<String>()).into()
    }

    #[test]
    fn fields_come_in_their_order() {
        let body = form(&[
            ("; name=\"a\"", "1"),
            ("; name=b\r\nContent-Type: text/plain", "x\r\ny"),
            ("; name=a", ""),
        ]);
        let fields = read(&body, "x", 10).unwrap();
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(fields, [pair("a", "1"), pair("b", "x\r\ny"), pair("a", "")]);
    }

    #[test]
    fn files_and_what_is_no_form_are_refused() {
        let file = form(&[("; name=a; filename=\"b.txt\"", "1")]);
        assert!(matches!(read(&file, "x", 10), Err(FormError::File)));
        let whole = form(&[("; name=a", "1"), ("; name=b", "2")]);
        assert!(matches!(read(&whole, "x", 1), Err(FormError::Read(ReadError::TooMany(1)))));
        for cut in 0..whole.len() - 4 {
            assert!(read(&whole.slice(..cut), "x", 10).is_err(), "cut at {cut}");
        }
        assert!(read(&form(&[("", "1")]), "x", 10).is_err(), "no name");
        assert!(read(&whole, "other", 10).is_err());
    }
}
