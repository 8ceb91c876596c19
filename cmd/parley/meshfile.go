package main

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"github.com/parleymesh/parley/internal/fault"
)

// What the admin API takes at most, in bytes.
const (
	maxMeshFile = 4 << 20 // of a mesh file
	maxName     = 255     // of its name
)

// local is the name of a mesh file as it is best shown here: below the current
// directory without that.
func local(name string) string {
	wd, err := os.Getwd()
	if err != nil || !filepath.IsAbs(name) {
		return name
	}
	rel, err := filepath.Rel(wd, name)
	if err != nil || rel == ".." || strings.HasPrefix(rel, "../") {
		return name
	}
	return rel
}

// localFaults shows the places of faults as local has them.
func localFaults(err error) {
	for _, f := range fault.All(err) {
		if name := local(f.File); name != f.File {
			f.Message, f.Hint = strings.ReplaceAll(f.Message, f.File+":", name+":"), strings.ReplaceAll(f.Hint, f.File+":", name+":")
			f.File = name
		}
	}
}

// stdin is the name of a mesh file that came through standard input.
const stdin = "stdin"

// readMesh is the text of a mesh file and its name: its absolute path, since what
// shows it later may run elsewhere. The file "-" is in. What else to do where it
// cannot be read is next.
func readMesh(in io.Reader, file, next string) (text, name string, err error) {
	name = stdin
	if file != "-" || in == nil {
		f, err := os.Open(file)
		if err != nil {
			return "", "", unreadable(err, file, next)
		}
		defer f.Close()
		in, name = f, file
		if abs, err := filepath.Abs(file); err == nil && len(abs) <= maxName {
			name = abs
		}
	}
	data, err := io.ReadAll(io.LimitReader(in, maxMeshFile+1))
	switch {
	case err != nil:
		return "", "", unreadable(err, file, next)
	case len(data) > maxMeshFile:
		return "", "", fault.New(fault.MeshTooLarge, "is it the right file? ls -l "+quoted(file), "%s is larger than 4 MiB; nothing was changed", local(name))
	}
	text = string(data)
	return text, name, checkUTF8(text, name)
}

func unreadable(err error, file, next string) error {
	if errors.Is(err, os.ErrPermission) {
		next = "ls -l " + quoted(file)
	}
	var p *os.PathError
	if errors.As(err, &p) {
		err = p.Err
	}
	return fault.Wrap(err, fault.MeshUnreadable, next, "cannot read %s", file)
}

// checkUTF8 points at the first byte that is not UTF-8. The server would refuse it
// as well, but JSON has no way to get it there.
func checkUTF8(text, name string) error {
	if utf8.ValidString(text) {
		return nil
	}
	at := 0
	for at < len(text) {
		if r, size := utf8.DecodeRuneInString(text[at:]); r != utf8.RuneError || size > 1 {
			at += size
			continue
		}
		break
	}
	line := strings.Count(text[:at], "\n") + 1
	return withSource(&fault.Fault{
		Code: fault.MeshSyntax, Message: "the mesh file holds a byte that is not UTF-8", Hint: "save the file as UTF-8 text",
		File: name, Line: line, Column: at - strings.LastIndexByte(text[:at], '\n'), EndColumn: at - strings.LastIndexByte(text[:at], '\n') + 1,
	}, name, text)
}

// quoted is a file name as a shell takes it.
func quoted(file string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._-/+:", r)
	}
	if file != "" && strings.IndexFunc(file, func(r rune) bool { return !plain(r) }) < 0 {
		return file
	}
	return "'" + strings.ReplaceAll(file, "'", `'\''`) + "'"
}
