package term

import (
	"bytes"
	"encoding/json"

	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/visible"
)

// Version is the version of every document that --json writes. Fields are only
// added within a version.
const Version = 1

type document struct {
	Version int    `json:"version"`
	Kind    string `json:"kind"`
	Data    any    `json:"data"`
}

// Document writes data as the one document of an answer.
func (t *Terminal) Document(kind string, data any) error {
	body, err := encode(document{Version, kind, data})
	if err != nil {
		return err
	}
	var b bytes.Buffer
	if err := json.Indent(&b, body, "", "  "); err != nil {
		return err
	}
	return t.write(b.Bytes())
}

// DocumentLine writes data as one line of a stream of documents.
func (t *Terminal) DocumentLine(kind string, data any) error {
	body, err := encode(document{Version, kind, data})
	if err != nil {
		return err
	}
	return t.write(body)
}

// encode leaves <, > and & as they are: nothing here is read by a browser.
func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return b.Bytes(), err
}

func (t *Terminal) write(body []byte) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, err := t.out.Write(append(bytes.TrimRight(visible.JSON(body), "\n"), '\n'))
	if err != nil && t.lost == nil {
		t.lost = err
	}
	return err
}

// Record writes a document that is JSON already and part of an answer in words.
func (t *Terminal) Record(doc []byte) error {
	var b bytes.Buffer
	if err := json.Indent(&b, doc, "", "  "); err != nil {
		return err
	}
	return t.write(b.Bytes())
}

// A problem is an error as a document.
type problem struct {
	ExitCode int        `json:"exit_code"`
	Message  string     `json:"message"`
	Faults   fault.List `json:"faults"`
}
