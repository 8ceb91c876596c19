package main

import (
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	fence = regexp.MustCompile("(?ms)^ *```([a-z]*)\n(.*?)^ *```$")
	// typed is where a command line of ours begins: alone, after a prompt, a
	// pipe or a parenthesis, and with the ways to run it from source.
	typed = regexp.MustCompile(`(?:^|[|(;&] *)(?:\S*/)?(?:go run \S*cmd/)?parley( [^|;&)]*)?`)
	word  = regexp.MustCompile(`'[^']*'|"[^"]*"|\S+`)
)

// TestDocumentedCommands wants each `parley ...` line in the blocks of the
// documents to name a command, flags and as many arguments as there are. A block
// of sh holds commands, one of console holds them behind "$ ", and every other
// one is output.
func TestDocumentedCommands(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("../../docs/*.md")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	found := 0
	for _, file := range append(files, "../../README.md", "../../ARCHITECTURE.md") {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range commandLines(string(text)) {
			found++
			if err := accepts(line); err != nil {
				t.Errorf("%s: parley%s: %v", filepath.Base(file), line, err)
			}
		}
	}
	if found < 10 {
		t.Errorf("%d commands in the documents: the test does not find them", found)
	}
}

// commandLines are what follows `parley` in the blocks of a document.
func commandLines(text string) (out []string) {
	for _, b := range fence.FindAllStringSubmatch(text, -1) {
		for line := range strings.Lines(b[2]) {
			line, prompted := strings.CutPrefix(strings.TrimSpace(line), "$ ")
			if b[1] != "sh" && !prompted {
				continue
			}
			line, _, _ = strings.Cut(line, " #")
			for _, m := range typed.FindAllStringSubmatch(line, -1) {
				out = append(out, m[1])
			}
		}
	}
	return out
}

// accepts says what the command tree has against a command line.
func accepts(line string) error {
	words := word.FindAllString(line, -1)
	for i, w := range words {
		words[i] = strings.Trim(w, `'"`)
	}
	root := (&app{in: strings.NewReader(""), out: io.Discard, err: io.Discard, args: words, getenv: func(string) string { return "" }}).root()
	cmd, rest, err := root.Find(words)
	if err != nil {
		return err
	}
	if err := cmd.ParseFlags(rest); err != nil {
		return err
	}
	args := cmd.Flags().Args()
	if cmd.HasSubCommands() && len(args) > 0 { // a group refuses it only when it runs
		return unknownCommand(cmd, args[0])
	}
	if cmd == root {
		return nil
	}
	return cmd.ValidateArgs(args)
}

func TestDocumentedCommandsAreJudged(t *testing.T) {
	t.Parallel()
	text := "```sh\nparley status --check   # all well?\nKEY=$(parley key create ci --quiet)\n```\n```console\n$ curl x | parley apply -f -\nparley is output\n```\nparley is prose\n"
	want := []string{" status --check  ", " key create ci --quiet", " apply -f -"}
	if got := commandLines(text); strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("%q, want %q", got, want)
	}
	for line, good := range map[string]bool{
		"": true, " status --check": true, " key create ci --scope a,b": true, ` why web orders GET "/a b"`: true,
		" staus": false, " audit verfy": false, " status --chek": false, " key create": false, " apply -f": false, " why a b c": false, " dev now": false,
	} {
		if err := accepts(line); (err == nil) != good {
			t.Errorf("parley%s: %v", line, err)
		}
	}
}
