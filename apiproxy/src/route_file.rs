//! The route file: TOML, read strictly, refused whole with every reason at once.
//!
//! ```toml
//! [defaults]
//! timeout = "30s"
//!
//! [[route]]
//! name = "math"
//! path = "/math/{*rest}"
//! strip_prefix = "/math"
//!
//! [[route.target]]
//! version = "blue"
//! subject = "svc.math.blue"
//! weight = 100
//! ```

use natsway_routes::document::{Faults, RouteDocument, Tuning};
use natsway_routes::table::RouteTable;
use serde::Deserialize;

/// A route file as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileDocument {
    /// When set, every target's subject must lie below it, so that permissions can be static.
    subject_prefix: Option<String>,
    /// What its routes have where they say nothing else.
    #[serde(default)]
    defaults: Tuning,
    /// The routes, one at least.
    #[serde(default, rename = "route")]
    routes: Vec<RouteDocument>,
}

/// The routes of a file, each complete in itself, and the table that they make.
#[derive(Debug)]
pub struct RouteFile {
    /// The routes with the file's defaults filled in.
    pub documents: Vec<RouteDocument>,
    /// All of them.
    pub table: RouteTable,
}

/// Reads a route file's text.
///
/// # Errors
/// Every fault that there is, one a line, each naming the route, the key, the value and what was
/// expected.
pub fn read_routes(text: &str) -> Result<RouteFile, Faults> {
    let file: FileDocument = toml::from_str(text)
        .map_err(|error| Faults(vec![error.to_string().trim_end().to_owned()]))?;
    let (mut faults, mut routes, mut documents) = (Vec::new(), Vec::new(), Vec::new());
    for mut document in file.routes {
        document.fill_in(&file.defaults);
        match document.check(file.subject_prefix.as_deref()) {
            Ok(route) => routes.push(route),
            Err(Faults(found)) => faults.extend(found),
        }
        documents.push(document);
    }
    if documents.is_empty() {
        faults.push("no [[route]]: a gateway without routes answers nothing".to_owned());
    }
    match RouteTable::new(routes) {
        Ok(table) if faults.is_empty() => Ok(RouteFile { documents, table }),
        Ok(_) => Err(Faults(faults)),
        Err(clashes) => {
            faults.extend(clashes.iter().map(ToString::to_string));
            Err(Faults(faults))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::*;

    fn faults(text: &str) -> String {
        read_routes(text).unwrap_err().to_string()
    }

    #[test]
    fn the_demo_file_is_a_table() {
        let file = read_routes(include_str!("../routes.demo.toml")).unwrap();
        assert!(file.table.routes().iter().any(|route| route.name == "demo"));
    }

    #[test]
    fn the_routes_of_the_readme_are_sound() {
        let readme = include_str!("../../README.md");
        let blocks = readme.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next());
        let routes: String = blocks.filter(|block| block.starts_with("[[route]]")).collect();
        let file = read_routes(&routes).unwrap();
        let names: Vec<_> = file.table.routes().iter().map(|route| route.name.as_str()).collect();
        assert!(names.contains(&"hello") && names.contains(&"greet"), "{names:?}");
    }

    #[test]
    fn a_durable_route_is_exported_as_it_is_read() {
        let text = r#"
            subject_prefix = "svc"
            [[route]]
            name = "hooks"
            path = "/hooks/{event}"
            mode = "publish"
            [route.publish]
            subject = "hooks.{event}"
            expect_stream = "HOOKS"
            ack_timeout = "3s"
            tokens.event = { push = "push", pull_request = "pr" }
            "#;
        let file = read_routes(text).unwrap();
        let exported = BTreeMap::from([("route", &file.documents)]);
        let again = read_routes(&toml::to_string(&exported).unwrap()).unwrap();
        assert_eq!(again.documents, file.documents);
        assert_eq!(again.table.routes(), file.table.routes());
        assert!(again.table.routes()[0].publish.is_some());
    }

    #[test]
    fn defaults_reach_the_routes_that_say_nothing() {
        let file = read_routes(
            r#"
            defaults = { timeout = "5s", max_body_bytes = 10 }
            [[route]]
            name = "a"
            path = "/a"
            target = [{ version = "v1", subject = "svc.a.v1" }]
            [[route]]
            name = "b"
            path = "/b"
            timeout = "1m"
            target = [{ version = "v1", subject = "svc.b.v1", weight = 0 }]
            "#,
        )
        .unwrap();
        let [a, b] = file.table.routes() else { panic!("two routes") };
        let five = Duration::from_secs(5);
        assert_eq!((a.timeout, a.try_timeout, a.limits.inline_body_bytes), (five, five, 10));
        assert_eq!((b.timeout, b.try_timeout), (Duration::from_secs(60), Duration::from_secs(10)));
        assert_eq!(b.split.pick(0), None);
        // Each stands alone in the bucket.
        let json = file.documents[0].to_json();
        assert_eq!(RouteDocument::from_json(json.as_bytes()).unwrap().check(None).unwrap(), **a);
    }

    #[test]
    fn every_fault_is_named_with_its_route_key_and_expectation() {
        let text = faults(
            r#"
            subject_prefix = "svc"
            [[route]]
            name = "bad name"
            path = "nope"
            host = "a:80"
            methods = ["get"]
            strip_prefix = "/x/"
            timeout = "0s"
            rule = [{ header = "x", version = "v9" }, { version = "v2" }, { header = "b d", version = "v2" }]
            sticky = { header = "x", client = true }
            target = [
                { version = "v1", subject = "svc.*" },
                { version = "v2", subject = "other.x" },
                { version = "v 3", subject = "svc.x" },
            ]
            "#,
        );
        for expected in [
            "name=\"bad name\"",
            "path=\"nope\"",
            "host=\"a:80\"",
            "methods=\"get\"",
            "strip_prefix=\"/x/\"",
            "timeout=0s",
            "subject=\"svc.*\"",
            "one below \"svc\"",
            "version=\"v 3\"",
            "rule=\"v9\"",
            "rule={..}",
            "rule=\"b d\"",
            "sticky={..}",
        ] {
            assert!(text.contains(expected), "{expected} is not in:\n{text}");
        }
    }

    #[test]
    fn weights_schemas_unknown_keys_and_empty_files_are_refused() {
        let route = |more: &str| format!("[[route]]\nname = \"a\"\npath = \"/a\"\n{more}");
        assert!(faults("rout = []").contains("unknown field `rout`"));
        assert!(faults("").contains("no [[route]]"));
        assert!(faults(&route("")).contains("needs one target"));
        let heavy = "target = [{ version = \"v\", subject = \"s\", weight = 2000000 }]";
        assert!(faults(&route(heavy)).contains("expected 0..=1000000"));
        let newer = "schema = 3\ntarget = [{ version = \"v\", subject = \"s\" }]";
        assert!(faults(&route(newer)).contains("schema=3"));
    }
}
