//! What README says of five minutes on a cluster. The story of the mesh applies what is applied there, and gives the
//! commands that are given there.

const README: &str = include_str!("../../../README.md");
const CHAPTER: &str = "## Five minutes on your cluster";

/// The first console of the chapter, line by line.
fn console() -> impl Iterator<Item = &'static str> {
    let chapter = README.split_once(CHAPTER).map(|(_, rest)| rest).unwrap_or_default();
    let console = chapter.split_once("```console\n").map(|(_, rest)| rest).unwrap_or_default();
    console.lines().take_while(|line| *line != "```")
}

/// The words of each `ambit`, without the remark behind them.
fn commands() -> Vec<Vec<&'static str>> {
    let said = console().filter_map(|line| line.strip_prefix("$ ambit "));
    said.map(|line| line.split('#').next().unwrap_or_default().split_whitespace().collect()).collect()
}

/// The object that is applied.
pub(crate) fn manifest() -> String {
    let inside = console().skip_while(|line| !line.contains("<<'END'")).skip(1);
    inside.take_while(|line| *line != "END").map(|line| format!("{line}\n")).collect()
}

#[test]
fn the_story_gives_the_commands_of_the_readme_in_their_order() {
    let story = include_str!("mesh.rs");
    let commands = commands();
    assert_eq!(commands.len(), 6, "{commands:?}");
    let mut rest = story;
    for words in commands {
        let told = match words.as_slice() {
            ["install"] => "scene.install(&[])".to_owned(),
            // It asks, and in the story nobody is there to answer.
            ["uninstall"] => r#"scene.ambit(&["uninstall", "--yes", "--purge""#.to_owned(),
            words => {
                let literal =
                    |word: &&str| if *word == "shop" { "SHOP".to_owned() } else { format!("{word:?}") };
                format!("scene.ambit(&[{}])", words.iter().map(literal).collect::<Vec<_>>().join(", "))
            }
        };
        let (_, after) = rest.split_once(&told).unwrap_or_else(|| panic!("the story has no {told} there"));
        rest = after;
    }
    assert!(manifest().contains("kind: PeerAuthentication") && story.contains("readme::manifest()"));
}
