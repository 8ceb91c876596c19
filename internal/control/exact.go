package control

import (
	"bytes"
	"encoding/json"
	"net/http"

	"github.com/parleymesh/parley/internal/control/api"
)

// encodeExact is v as one line of JSON in which the bytes of events stand as
// they are stored. The generated replies escape <, > and & inside them, and an
// event would no longer hash to its leaf.
func encodeExact(v any) ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	err := enc.Encode(v)
	return buf.Bytes(), err
}

// An exact is a reply that holds events.
type exact[T api.Entry | api.EventList | api.Explanation] struct{ v T }

func (e exact[T]) write(w http.ResponseWriter) error {
	body, err := encodeExact(e.v)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	_, err = w.Write(body)
	return err
}

func (e exact[T]) VisitGetEventResponse(w http.ResponseWriter) error   { return e.write(w) }
func (e exact[T]) VisitListEventsResponse(w http.ResponseWriter) error { return e.write(w) }
func (e exact[T]) VisitExplainResponse(w http.ResponseWriter) error    { return e.write(w) }
