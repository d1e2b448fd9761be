//! JSON schemas made of the types that read a text.

use schemars::generate::SchemaSettings;
use schemars::transform::{Transform, transform_subschemas};
use schemars::{JsonSchema, Schema};
use serde_json::Value as Json;

/// The schema of a type that is read from TOML.
pub fn schema_of<T: JsonSchema>() -> Json {
    let settings = SchemaSettings::draft2020_12().with_transform(WithoutNull);
    settings.into_generator().into_root_schema_for::<T>().to_value()
}

/// Other keys are errors.
pub(crate) fn closed(_: &mut Schema) {}

/// Other keys are errors, except for the one that tells variants apart, which
/// schemars adds by itself.
pub(crate) fn variant(_: &mut Schema) {}

/// Other keys are only worth a warning.
pub(crate) fn open(schema: &mut Schema) {
    schema.remove("additionalProperties");
}

/// TOML has no null: what is optional is left away.
#[derive(Clone)]
struct WithoutNull;

impl Transform for WithoutNull {
    fn transform(&mut self, schema: &mut Schema) {
        transform_subschemas(self, schema);
        let null = Json::from("null");
        if let Some(Json::Array(types)) = schema.get_mut("type") {
            types.retain(|name| *name != null);
            if let [only] = types.as_slice() {
                let only = only.clone();
                schema.insert("type".to_owned(), only);
            }
        }
        let Some(Json::Array(choices)) = schema.get_mut("anyOf") else { return };
        choices.retain(|choice| choice.get("type") != Some(&null));
        if let [Json::Object(only)] = choices.as_mut_slice() {
            let only = std::mem::take(only);
            schema.remove("anyOf");
            for (key, value) in only {
                // What is said about this use of a type goes before what is
                // said about the type.
                if schema.get(&key).is_none() {
                    schema.insert(key, value);
                }
            }
        }
    }
}
