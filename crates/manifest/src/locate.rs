//! Lines of a manifest, for what is found out long after it was read.
//!
//! A checked [`App`](crate::App) does not remember where its parts stood. Whoever finds
//! later that one of them is wrong, when a component is composed or built, asks here.
//! What cannot be found has no line, which is no error.

use toml_edit::{Document, Item, TableLike};

/// The line of a component's dependency, from 1.
pub fn dependency(text: &str, component: &str, dependency: &str) -> Option<usize> {
    let document = Document::parse(text).ok()?;
    let component = document.as_table().get("component")?.as_table_like()?.get(component)?.as_table_like()?;
    let in_dependencies = |table: &dyn TableLike| {
        let dependencies = table.get("dependencies")?.as_table_like()?;
        let (key, item) = dependencies.get_key_value(dependency)?;
        key.span().or_else(|| item.span())
    };
    let of_profile = || {
        let profiles = component.get("profile")?.as_table_like()?;
        profiles.iter().find_map(|(_, profile)| in_dependencies(profile.as_table_like()?))
    };
    in_dependencies(component).or_else(of_profile).map(|span| line_at(text, span.start))
}

/// The line of a member of a trigger's middleware, both counted from 0 as they stand in
/// the text; from 1.
pub fn middleware(text: &str, trigger: usize, position: usize) -> Option<usize> {
    let document = Document::parse(text).ok()?;
    let triggers = document.as_table().get("trigger")?.as_table_like()?.get("http")?;
    let trigger: &dyn TableLike = match triggers {
        Item::ArrayOfTables(tables) => tables.get(trigger)?,
        item => item.as_array()?.get(trigger)?.as_inline_table()?,
    };
    let listed = trigger.get("dependencies")?.as_table_like()?.get("middleware")?;
    let span = match listed {
        Item::ArrayOfTables(tables) => tables.get(position)?.span(),
        item => item.as_array()?.get(position)?.span(),
    };
    span.map(|span| line_at(text, span.start))
}

/// The line of a component's table, from 1.
pub fn component(text: &str, component: &str) -> Option<usize> {
    let document = Document::parse(text).ok()?;
    let (key, item) = document.as_table().get("component")?.as_table_like()?.get_key_value(component)?;
    item.span().or_else(|| key.span()).map(|span| line_at(text, span.start))
}

fn line_at(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_found_however_they_are_written() {
        let text = "spin_manifest_version = 2\n\
            [[trigger.http]]\n\
            route = \"/\"\n\
            component = \"a\"\n\
            [[trigger.http]]\n\
            route = \"/b\"\n\
            component = \"a\"\n\
            dependencies.middleware = [\n\
              { path = \"one.wasm\" },\n\
              { path = \"two.wasm\" },\n\
            ]\n\
            [component.a]\n\
            source = \"a.wasm\"\n\
            [component.a.dependencies]\n\
            \"x:y/z@1.0.0\" = { path = \"z.wasm\" }\n\
            plain = { path = \"p.wasm\" }\n\
            [component.a.profile.debug.dependencies]\n\
            other = { path = \"o.wasm\" }\n";
        assert_eq!(dependency(text, "a", "x:y/z@1.0.0"), Some(15));
        assert_eq!(dependency(text, "a", "plain"), Some(16));
        assert_eq!(dependency(text, "a", "other"), Some(18));
        assert_eq!(dependency(text, "a", "none"), None);
        assert_eq!(dependency(text, "b", "plain"), None);
        assert_eq!(middleware(text, 1, 1), Some(10));
        assert_eq!(middleware(text, 0, 0), None);
        assert_eq!(component(text, "a"), Some(12));
        assert_eq!(component("not toml", "a"), None);
    }
}
