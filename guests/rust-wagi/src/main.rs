//! A CGI program: answers with its arguments, its environment and its input.
//!
//! `?status=418` sets the status, `?trap` panics half way through the answer,
//! `?nothing` ends without an answer, `?exit=3` ends with that code.

use std::io::Read;

fn main() {
    let query = std::env::var("QUERY_STRING").unwrap_or_default();
    let value = |name: &str| {
        query.split('&').find_map(|pair| match pair.split_once('=') {
            Some((key, value)) if key == name => Some(value.to_owned()),
            None if pair == name => Some(String::new()),
            _ => None,
        })
    };
    if value("nothing").is_some() {
        return;
    }
    if let Some(status) = value("status") {
        println!("Status: {status}");
    }
    println!("Content-Type: text/plain");
    println!("X-Wagi: yes");
    println!();
    if value("trap").is_some() {
        deliberate_trap();
    }
    for (number, argument) in std::env::args().enumerate() {
        println!("argument {number}: {argument}");
    }
    let mut variables: Vec<_> = std::env::vars().collect();
    variables.sort();
    for (name, value) in variables {
        println!("{name}={value}");
    }
    let mut body = String::new();
    match std::io::stdin().read_to_string(&mut body) {
        Ok(length) => println!("body of {length} bytes: {body}"),
        Err(error) => println!("body: {error}"),
    }
    eprintln!("a line for the log");
    if let Some(code) = value("exit") {
        std::process::exit(code.parse().unwrap_or(1));
    }
}

#[inline(never)]
fn deliberate_trap() {
    panic!("this guest was asked to trap");
}
