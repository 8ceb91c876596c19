package fault

import (
	"embed"
	"slices"
	"strings"
)

// pages are what `parley explain` shows, one a code: of this package, and of the
// reasons that decisions and events carry.
//
//go:embed pages/*.md
var pages embed.FS

// Page is the text about a code ("PAR-1007") or a reason ("caller_not_allowed"),
// in Markdown, and whether there is one.
func Page(code string) (string, bool) {
	text, err := pages.ReadFile("pages/" + code + ".md")
	return string(text), err == nil
}

// Pages are the codes and reasons that have a page, the codes first.
func Pages() []string {
	entries, err := pages.ReadDir("pages")
	if err != nil {
		return nil
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = strings.TrimSuffix(e.Name(), ".md")
	}
	slices.Sort(names) // capitals come before small letters
	return names
}

// Title is the first line of a page without its code: one line of meaning.
func Title(code string) string {
	text, _ := Page(code)
	first, _, _ := strings.Cut(text, "\n")
	_, title, _ := strings.Cut(first, ": ")
	return title
}
