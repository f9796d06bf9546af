//! A day of an operator and two tenants, with the `hearth` command alone.
//!
//! **What.** `day.txt` is what they type and what they must read; this runs it on real daemons, line by line.
//! **Why a text.** It can be read by somebody who does not know Rust, and typed.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use hearth_tests::cluster::{Cluster, Extra};
use hearth_tests::disk;

use crate::typed::Person;

const DAY: &str = include_str!("walk_through/day.txt");

/// A command and what must come of it.
#[derive(Debug, Default)]
struct Step {
    line: usize,
    who: &'static str,
    words: Vec<&'static str>,
    input: Vec<&'static str>,
    code: i32,
    name: Option<&'static str>,
    says: Vec<&'static str>,
}

fn steps() -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for (number, text) in DAY.lines().enumerate() {
        if text.starts_with('#') || text.trim().is_empty() {
            continue;
        }
        if let Some((who, command)) = text.split_once("$ ") {
            let words = command.split_whitespace().collect();
            steps.push(Step { line: number + 1, who, words, ..Step::default() });
            continue;
        }
        let step = steps.last_mut().unwrap();
        match text.split_at(2) {
            ("< ", line) => step.input.push(line),
            ("! ", code) => step.code = code.parse().unwrap(),
            ("= ", name) => step.name = Some(name),
            ("  ", words) => step.says.push(words),
            _ => panic!("day.txt:{}: {text:?} is no line of a step", number + 1),
        }
    }
    steps
}

/// Another program, in the cluster's folder.
fn other(cluster: &Cluster, step: &Step, words: &[&str]) -> String {
    let output = Command::new(words[0]).args(&words[1..]).current_dir(cluster.dir()).output().unwrap();
    let said = crate::typed::text(&output);
    assert_eq!(output.status.code(), Some(step.code), "day.txt:{}: {said}", step.line);
    said
}

/// Proves PE-1, IN-6, IN-9, AT-1, LS-1, SH-4, HI-1, CA-5, DW-1, DL-2, QU-1, LG-1: a day over all groups of the promise.
#[tokio::test(flavor = "multi_thread")]
async fn a_day_of_an_operator_and_two_tenants() {
    let keys = tempfile::tempdir().unwrap();
    let master = keys.path().join("master.key");
    std::fs::write(&master, "5a".repeat(32)).unwrap();
    std::fs::set_permissions(&master, std::fs::Permissions::from_mode(0o600)).unwrap();
    let extra = Extra { controller: format!("master_key = {master:?}\n"), ..Extra::default() };
    let cluster = Cluster::start_with(2, extra).await.unwrap();
    for (seed, name) in ["erp-system", "erp-data", "one-too-many", "public"].iter().enumerate() {
        disk::ext4(&cluster.dir().join(format!("{name}.raw")), 16, 2, 300 + seed as u64).unwrap();
    }
    std::fs::write(cluster.dir().join("wrong.qcow2"), "<html>404</html>").unwrap();
    let names = [("operator", "hearth"), ("ann", "ann"), ("bob", "bob")];
    let people: BTreeMap<_, _> =
        names.into_iter().map(|(who, file)| (who, Person::new(&cluster, file))).collect();
    let mut kept: BTreeMap<&str, String> = BTreeMap::new();
    let steps = steps();
    assert!(steps.len() >= 60, "a day has {} steps", steps.len());
    for step in &steps {
        let filled = |word: &&str| {
            kept.iter()
                .fold((*word).to_owned(), |word, (name, value)| word.replace(&format!("{{{name}}}"), value))
        };
        let words: Vec<String> = step.words.iter().map(filled).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        println!("{}$ {}", step.who, words.join(" "));
        let said = match people.get(step.who) {
            Some(person) if words[0] == "hearth" => person.with_input(&words[1..], &step.input, step.code),
            _ => other(&cluster, step, &words),
        };
        for words in &step.says {
            assert!(said.contains(words), "day.txt:{}: {words:?} is missing in:\n{said}", step.line);
        }
        if let Some(name) = step.name {
            let value = match name.split_once(' ') {
                Some((_, field)) => {
                    let json: serde_json::Value = serde_json::from_str(&said).unwrap();
                    json[field].as_str().unwrap().to_owned()
                }
                None => said.lines().next().unwrap_or_default().to_owned(),
            };
            kept.insert(name.split(' ').next().unwrap_or_default(), value);
        }
    }
}
