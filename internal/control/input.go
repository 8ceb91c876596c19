package control

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/fault"
)

// input is what an operation reads: its query parameters and its JSON body,
// as pointers to the generated types, nil for none.
func input(pattern string) (query, body any) {
	switch pattern {
	case "GET /v1/config/revisions":
		return &api.ListRevisionsParams{}, nil
	case "GET /v1/config/diff":
		return &api.DiffConfigParams{}, nil
	case "GET /v1/keys":
		return &api.ListKeysParams{}, nil
	case "GET /v1/audit/events":
		return &api.ListEventsParams{}, nil
	case "GET /v1/audit/logs/{log}/entries":
		return &api.ExportEntriesParams{}, nil
	case "GET /v1/audit/stats":
		return &api.CountEventsParams{}, nil
	case "GET /v1/audit/tail":
		return &api.TailEventsParams{}, nil
	case "GET /v1/why":
		return &api.ExplainParams{}, nil
	case "GET /v1/certificates":
		return &api.ListCertificatesParams{}, nil
	case "POST /v1/config":
		return nil, &api.ApplyRequest{}
	case "POST /v1/config/rollback":
		return nil, &api.RollbackRequest{}
	case "POST /v1/keys":
		return nil, &api.KeyRequest{}
	case "POST /v1/bans":
		return nil, &api.BanRequest{}
	case "DELETE /v1/bans":
		return &api.DeleteBanParams{}, nil
	case "POST /v1/audit/erasures":
		return nil, &api.EraseRequest{}
	case "POST /v1/verify":
		return nil, &api.VerifyRequest{}
	case "POST /v1/certificates":
		return nil, &api.CertificateRequest{}
	case "POST /v1/join-tokens":
		return nil, &api.JoinTokenRequest{}
	case "POST /v1/log-levels":
		return nil, &api.LogLevelRequest{}
	}
	return nil, nil
}

// strictInput refuses what the generated decoders would pass over: unknown or
// repeated parameters and fields, fields in another case, bytes that are not
// UTF-8 (encoding/json would replace them), and a body where none belongs. What
// it lets through they read the same way.
func (s *Server) strictInput(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		query, body := input(r.Pattern)
		err := checkQuery(r.URL.RawQuery, query)
		if err == nil {
			err = checkBody(r, body)
		}
		if err != nil {
			s.badRequest(w, r, err)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func checkQuery(raw string, params any) error {
	values, err := url.ParseQuery(raw)
	if err != nil {
		return fmt.Errorf("the query is malformed: %w", err)
	}
	known := fieldNames(params, "form")
	for name, v := range values {
		switch {
		case !slices.Contains(known, name):
			return unknown("parameter", name, known)
		case len(v) > 1:
			return fault.New(fault.BadRequest, "", "the parameter %q stands there twice", clip(name))
		case !utf8.ValidString(v[0]):
			return fault.New(fault.BadRequest, "", "the parameter %q is not UTF-8", clip(name))
		}
	}
	return nil
}

// checkBody reads the body, which is bounded by then, and leaves it to be read again.
func checkBody(r *http.Request, target any) error {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return fmt.Errorf("read the body: %w", err)
	}
	if target == nil {
		if len(body) > 0 {
			return fault.New(fault.BadRequest, "send no body", "%s takes no body", r.Pattern)
		}
		return nil
	}
	if media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || media != "application/json" {
		return fault.New(fault.BadRequest, "send Content-Type: application/json", "the body is not declared as JSON")
	}
	if !utf8.Valid(body) {
		return fault.New(fault.BadRequest, "", "the body is not UTF-8")
	}
	if err := checkObject(body, fieldNames(target, "json")); err != nil {
		return err
	}
	if err := json.Unmarshal(body, target); err != nil {
		return fmt.Errorf("the body does not fit: %w", err)
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	return nil
}

// checkObject holds that body is one JSON object whose keys are known and stand
// there once. Values are left to the decoder: no request nests objects.
func checkObject(body []byte, known []string) error {
	if !json.Valid(body) || !bytes.HasPrefix(bytes.TrimSpace(body), []byte("{")) {
		return fault.New(fault.BadRequest, "", "the body is no JSON object")
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	if _, err := dec.Token(); err != nil { // {
		return err
	}
	seen := map[string]bool{}
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return err
		}
		key, _ := t.(string)
		switch {
		case !slices.Contains(known, key):
			return unknown("field", key, known)
		case seen[key]:
			return fault.New(fault.BadRequest, "", "the field %q stands there twice", key)
		}
		seen[key] = true
		if err := dec.Decode(new(json.RawMessage)); err != nil {
			return err
		}
	}
	return nil
}

func unknown(what, name string, known []string) error {
	hint := "it takes no " + what + "s"
	if len(known) > 0 {
		hint = "the " + what + "s are " + strings.Join(known, ", ")
	}
	return fault.New(fault.BadRequest, hint, "%q is no %s of this operation", clip(name), what)
}

// fieldNames are the wire names of the fields of the struct that v points to.
func fieldNames(v any, tag string) (names []string) {
	if v == nil {
		return nil
	}
	t := reflect.TypeOf(v).Elem()
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get(tag), ",")
		names = append(names, name)
	}
	return names
}
