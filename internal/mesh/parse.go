package mesh

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"github.com/parleymesh/parley/internal/fault"
)

// Parse reads the mesh file called name. It is strict: an unknown or duplicate
// key, a value of the wrong type or out of range, an anchor, an alias, a tag, a
// second document, and everything that cannot work (a name that does not exist,
// two listeners on one address, ...) is an error. The error is a fault.List with
// every error of the document, in order of place, up to MaxFaults; only an error
// of YAML itself hides those behind it. The name is used for positions only.
func Parse(name string, data []byte) (*File, error) {
	text := string(bytes.TrimPrefix(data, []byte("\ufeff")))
	r := &reporter{src: newSource(name, "")}
	if len(data) > MaxSize {
		r.add(span{}, flaw{code: fault.MeshTooLarge, message: fmt.Sprintf("the mesh file has %d bytes, the limit is %d", len(data), MaxSize)})
		return nil, r.err()
	}
	r.src = newSource(name, text)
	if !r.text(text) {
		return nil, r.err()
	}
	root := r.document(text)
	if root == nil || !r.plain(root, 0) {
		return nil, r.err()
	}
	d := &decoder{reporter: r, places: map[string]place{}, strange: map[string]bool{}}
	if root.Kind != yaml.MappingNode {
		d.note(root, "")
		d.wrong(root, "", "a mapping", "begin it with: trust_domain: shop.example", "")
		return nil, r.err()
	}
	f := d.file(root)
	f.name, f.src, f.places = name, r.src, d.places
	v := &validator{reporter: r, f: f, strange: d.strange}
	v.file()
	if err := r.err(); err != nil {
		return nil, err
	}
	return f, nil
}

// text refuses what is no text, and the characters that some programs take for
// a line's end and others do not: positions and meaning would differ.
func (r *reporter) text(text string) bool {
	line, from := 1, 0
	for i := 0; i < len(text); {
		c, size := utf8.DecodeRuneInString(text[i:])
		what := ""
		switch {
		case c == '\n':
			line, from = line+1, i+1
		case c == '\r' && !strings.HasPrefix(text[i:], "\r\n"):
			what = "a carriage return without a line feed"
		case c == utf8.RuneError && size == 1:
			what = "a byte that is not UTF-8"
		case c == '\u0085' || c == '\u2028' || c == '\u2029':
			what = fmt.Sprintf("the Unicode line separator %U", c)
		case c < ' ' && c != '\t' && c != '\r', c >= 0x7f && c < 0xa0, c == '\ufeff', c == 0xfffe, c == 0xffff:
			what = fmt.Sprintf("the control character %U", c)
		}
		if what != "" {
			r.add(span{line, i - from + 1, i - from + 1 + size}, flaw{
				code: fault.MeshSyntax, message: "the mesh file holds " + what,
				hint: "save the file as UTF-8 text with ordinary line ends",
			})
			return false
		}
		i += size
	}
	return true
}

// document is the root of the one YAML document, or nil after a fault.
func (r *reporter) document(text string) *yaml.Node {
	lines := &lineReader{text: text}
	dec := yaml.NewDecoder(lines)
	root, err := decodeNode(dec)
	switch {
	case errors.Is(err, io.EOF), err == nil && len(root.Content) == 0, err == nil && root.Content[0].ShortTag() == "!!null":
		r.add(span{}, flaw{code: fault.MeshSyntax, message: "the mesh file is empty", hint: "the smallest one is: trust_domain: shop.example"})
		return nil
	case err != nil:
		r.syntax(err, lines.line)
		return nil
	}
	switch second, err := decodeNode(dec); {
	case err == nil:
		r.add(r.src.whole(second.Line), flaw{
			code: fault.MeshSyntax, message: "a second document in the mesh file",
			label: "a mesh file is one document", hint: "remove the line ---, and what follows it or precedes it",
		})
		return nil
	case !errors.Is(err, io.EOF):
		r.syntax(err, lines.line)
		return nil
	}
	return root.Content[0]
}

// decodeNode reads one document. The parser's own panics, of which it has had
// some, end here.
func decodeNode(dec *yaml.Decoder) (n *yaml.Node, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the text confuses the YAML parser: %v", p)
		}
	}()
	n = new(yaml.Node)
	return n, dec.Decode(n)
}

// syntax reports what the YAML parser could not read. The line that it names is
// in general where the mistake is; for errors of structure it is the one before
// the surrounding block or bracket, and read, how far it got, is nearer.
func (r *reporter) syntax(err error, read int) {
	msg := strings.TrimPrefix(err.Error(), "yaml: ")
	named := 0
	if rest, ok := strings.CutPrefix(msg, "line "); ok {
		number, text, _ := strings.Cut(rest, ": ")
		if n, err := strconv.Atoi(number); err == nil {
			named, msg = n, text
		}
	}
	f := flaw{
		code: fault.MeshSyntax, message: "the mesh file is not YAML: " + msg, label: "cannot be read",
		hint: "look at this line's indentation, and for a missing colon, quote or bracket here or just before",
	}
	line := read
	switch structure := strings.HasPrefix(msg, "did not find expected ") && !strings.Contains(msg, "character"); {
	case strings.Contains(msg, "did not find expected ',' or") && strings.ContainsAny(r.src.line(named+1), "[{"):
		line, f.label, f.hint = named+1, "a bracket opens here and is not closed", "close it, or look for a missing comma inside"
	case named > 0 && !structure:
		line = named
	}
	line = min(line, len(r.src.lines))
	for line > 1 && strings.TrimSpace(r.src.line(line)) == "" {
		line--
	}
	switch text := r.src.line(line); {
	case strings.HasPrefix(strings.TrimLeft(text, " "), "\t"):
		f.hint = "indent with spaces: YAML does not allow tabs"
	case strings.HasPrefix(msg, "unknown anchor"), strings.Contains(msg, "alphabetic or numeric character"):
		f.message, f.label, f.hint = "an anchor or alias in the mesh file", msg, "write the value out; quote it if it is meant to begin with * or &"
	case strings.Contains(msg, "cannot start any token"):
		f.hint = "quote the value that begins with a special character"
	}
	r.add(r.src.whole(line), f)
}

// plain refuses what makes a document mean more than it shows: anchors, aliases
// and tags. It also bounds the depth, so that nothing behind it needs to.
func (r *reporter) plain(n *yaml.Node, depth int) bool {
	ok := true
	refuse := func(code fault.Code, message, hint string) {
		ok = false
		r.add(r.src.start(n), flaw{code: code, message: message, label: "not allowed here", hint: hint})
	}
	switch {
	case depth > maxDepth:
		refuse(fault.MeshTooLarge, fmt.Sprintf("more than %d levels of nesting", maxDepth), "the mesh file needs no more than ten")
		return false
	case n.Kind == yaml.AliasNode:
		refuse(fault.MeshSyntax, "an alias in the mesh file", "write the value out; quote it if it is meant to begin with *")
		return false
	case n.Anchor != "":
		refuse(fault.MeshSyntax, "an anchor in the mesh file", "remove it; quote the value if it is meant to begin with &")
	case n.Style&yaml.TaggedStyle != 0:
		refuse(fault.MeshSyntax, fmt.Sprintf("the tag %s in the mesh file", n.Tag), "remove it; quote the value if it is meant to begin with !")
	}
	for _, child := range n.Content {
		if r.full() {
			return false
		}
		ok = r.plain(child, depth+1) && ok
	}
	return ok
}

// A lineReader hands out a text line by line and knows how far it is: the parser
// reads no further than it must.
type lineReader struct {
	text string
	line int
}

// Read implements io.Reader.
func (l *lineReader) Read(p []byte) (int, error) {
	if l.text == "" {
		return 0, io.EOF
	}
	end := strings.IndexByte(l.text, '\n') + 1
	if end == 0 {
		end = len(l.text)
	}
	n := copy(p, l.text[:end])
	if n == end {
		l.line++
	}
	l.text = l.text[n:]
	return n, nil
}

// sortFaults orders by place; what has none comes first.
func sortFaults(l fault.List) {
	slices.SortStableFunc(l, func(a, b *fault.Fault) int {
		if a.Line != b.Line {
			return a.Line - b.Line
		}
		return a.Column - b.Column
	})
}
