//! `reqwest`: a body up and down, by either version of HTTP.

use futures_util::{StreamExt, stream};

fn body(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|offset| (offset % 251) as u8).collect()
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let (base, bytes) = (&arguments[1], arguments[2].parse()?);
    let expected = body(bytes);
    let http2 = reqwest::Client::builder().http2_prior_knowledge().build()?;
    for client in [reqwest::Client::new(), http2] {
        let pieces: Vec<_> = expected.chunks(60_000).map(<[u8]>::to_vec).collect();
        let pieces = stream::iter(pieces.into_iter().map(Ok::<_, std::io::Error>));
        let back = client.post(format!("{base}/back"));
        // What is sent comes back at the same time.
        let mut response = back.body(reqwest::Body::wrap_stream(pieces)).send().await?;
        let mut came = Vec::new();
        while let Some(piece) = response.chunk().await? {
            came.extend(piece);
        }
        assert!(came == expected, "up and down: {} of {bytes} bytes", came.len());
        let response = client.get(format!("{base}/pattern?bytes={bytes}")).send().await?;
        let down: Vec<_> = response.bytes_stream().collect().await;
        let down = down.into_iter().collect::<Result<Vec<_>, _>>()?.concat();
        assert!(down == expected, "down: {} of {bytes} bytes", down.len());
    }
    println!("up and down at once, down; HTTP/1.1 and 2");
    Ok(())
}
