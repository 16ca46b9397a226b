use super::*;

#[track_caller]
fn refused(text: &str, format: Format, with: &[&str]) {
    let error = parse(text, format).expect_err("it is wrong");
    for part in with {
        assert!(error.contains(part), "{error} does not say {part:?}");
    }
}

/// Every example of the documentation, in both formats.
#[test]
fn the_documented_examples_are_specs() {
    let text = include_str!("../../../docs/spec.md");
    let mut found = 0;
    for (fence, format) in [("```toml\n", Format::Toml), ("```json\n", Format::Json)] {
        for example in text.split(fence).skip(1).map(|rest| rest.split("```").next().unwrap()) {
            let spec = parse(example, format).unwrap_or_else(|error| panic!("{error}\n{example}"));
            spec.check("read").unwrap_or_else(|error| panic!("{error}\n{example}"));
            found += 1;
        }
    }
    assert!(found >= 4, "{found} examples");
}

#[test]
fn the_full_example_says_the_same_in_both_formats() {
    let text = include_str!("../../../docs/spec.md");
    let example = |fence: &str| text.split(fence).nth(2).unwrap().split("```").next().unwrap();
    let toml = parse(example("```toml\n"), Format::Toml).unwrap();
    let json = parse(example("```json\n"), Format::Json).unwrap();
    assert_eq!(toml, json);
    let process = toml.process.unwrap();
    assert_eq!(process.args[0], "/usr/bin/python3");
    assert_eq!(process.user, User { uid: 1000, gid: 100, groups: vec![27] });
    assert_eq!(process.rlimits, [Rlimit { resource: Resource::OpenFiles, soft: 1_024, hard: 4_096 }]);
    assert_eq!(toml.limits.cpu_millis, Some(500));
    assert_eq!(toml.limits.memory_bytes, Some(64 << 20));
    assert_eq!(toml.stop.grace, Duration::from_secs(3));
    assert_eq!(toml.network, Network::Join("/run/netns/blue".into()));
}

#[test]
fn an_empty_file_is_the_smallest_sandbox() {
    assert_eq!(parse("", Format::Toml).unwrap(), SandboxSpec::default());
    assert_eq!(parse("{}", Format::Json).unwrap(), SandboxSpec::default());
}

#[test]
fn what_is_wrong_is_said_with_its_line_and_field() {
    refused("args = ['/bin/true']\nmemory = 1\n", Format::Toml, &["2:1: ", "`memory`"]);
    refused(
        "[limits]\nmemory = '64 bananas'\n",
        Format::Toml,
        &["2:10: limits.memory: ", "64 bananas", "64MiB"],
    );
    refused("[limits]\nmemroy = 64\n", Format::Toml, &["2:1: ", "memroy", "`memory`"]);
    refused("stop_grace = 'soon'", Format::Toml, &["1:14: stop_grace: ", "soon", "30s"]);
    refused("root = 'guest'", Format::Toml, &["1:8: root: ", "\"host\""]);
    refused("root = { dir = '/x' }", Format::Toml, &["1:8: ", "`directory`"]);
    refused("args = [1]", Format::Toml, &["1:9: args[0]: ", "string"]);
    refused("args = [", Format::Toml, &["1:"]);
    refused("{\n \"limits\": {\"pids\": -1}\n}", Format::Json, &["2:", "limits.pids: ", "-1"]);
    refused("{\n \"lmits\": {}\n}", Format::Json, &["2:", "lmits"]);
    refused("{\n \"mounts\": [{\"source\": \"/a\"}]\n}", Format::Json, &["2:", "mounts[0]: ", "`target`"]);
    refused("{} {}", Format::Json, &["1:4: ", "trailing"]);
    refused("network = 'bridge'", Format::Toml, &["1:11: network: ", "bridge", "none, new"]);
    refused("env = ['A=1']", Format::Toml, &["env", "`args` names none"]);
    refused("args = ['/bin/x']\n[rlimits.files]\nsoft = 1", Format::Toml, &["2:10: ", "no rlimit \"files\""]);
}

#[test]
fn output_is_kept_unless_it_goes_elsewhere_or_nobody_wants_it() {
    let log = |text: &str| parse(text, Format::Toml).unwrap().process.unwrap().stdio.log_bytes;
    let args = "args = ['/bin/true']\n";
    assert_eq!(log(args), Some(DEFAULT_LOG_BYTES));
    assert_eq!(log(&format!("{args}[stdio]\nlog = false")), None);
    assert_eq!(log(&format!("{args}[stdio]\nlog = '2MiB'")), Some(2 << 20));
    assert_eq!(log(&format!("{args}[stdio]\nstdout = '/a'")), Some(DEFAULT_LOG_BYTES));
    assert_eq!(log(&format!("{args}[stdio]\nstdout = '/a'\nstderr = '/a'")), None);
    assert_eq!(log(&format!("{args}[isolation]\nno_init = true")), None);
}

#[test]
fn a_file_that_is_none_says_so() {
    let error = read(Path::new("/nonexistent/spec.toml")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.to_string().contains("cannot read the spec /nonexistent/spec.toml"), "{error}");
    let error = read(Path::new("spec.yaml")).unwrap_err().to_string();
    assert!(error.contains("neither .json nor .toml"), "{error}");
}
