//! A template: what is taken apart can be put together again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use wisp_manifest::template::Template;

fuzz_target!(|text: &str| {
    match Template::parse(text) {
        Ok(template) => {
            assert_eq!(template.source(), text);
            let written = template
                .expand(|name| Ok::<_, ()>(format!("{{{{ {name} }}}}")))
                .expect("every variable has a value");
            let again = Template::parse(&written).expect("a template stays one");
            assert_eq!(again.parts(), template.parts());
            assert_eq!(template.as_literal().is_some(), template.variables().count() == 0);
        }
        Err(error) => {
            assert!(text.get(error.range(text)).is_some());
            assert!(!error.to_string().is_empty());
        }
    }
});
