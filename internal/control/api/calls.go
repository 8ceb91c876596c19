package api

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"unicode/utf8"

	"github.com/parleymesh/parley/internal/fault"
)

// Version is which program answers.
func (c *Client) Version(ctx context.Context) (*Version, error) {
	return decode[Version](c, ctx, func(ctx context.Context) (*http.Response, error) { return c.requests.GetVersion(ctx) })
}

// Status is what runs now.
func (c *Client) Status(ctx context.Context) (*Status, error) {
	return decode[Status](c, ctx, func(ctx context.Context) (*http.Response, error) { return c.requests.GetStatus(ctx) })
}

// Apply makes a mesh file the desired state, or says what that would change.
// A text that is not UTF-8 is refused here: JSON cannot carry it as it is.
func (c *Client) Apply(ctx context.Context, r ApplyRequest) (*ApplyResult, error) {
	if !utf8.ValidString(r.Text) {
		return nil, fault.New(fault.MeshSyntax, "save it as UTF-8", "%s is not UTF-8", r.Name)
	}
	return decode[ApplyResult](c, ctx, func(ctx context.Context) (*http.Response, error) { return c.requests.ApplyConfig(ctx, r) })
}

// Rollback applies the text of an earlier revision as a new one.
func (c *Client) Rollback(ctx context.Context, r RollbackRequest) (*ApplyResult, error) {
	return decode[ApplyResult](c, ctx, func(ctx context.Context) (*http.Response, error) { return c.requests.RollbackConfig(ctx, r) })
}

// Revisions is a page of the history, newest first.
func (c *Client) Revisions(ctx context.Context, p ListRevisionsParams) (*RevisionList, error) {
	return decode[RevisionList](c, ctx, func(ctx context.Context) (*http.Response, error) { return c.requests.ListRevisions(ctx, &p) })
}

// Revision is one revision with its text; number 0 is the newest.
func (c *Client) Revision(ctx context.Context, number int64) (*RevisionText, error) {
	return decode[RevisionText](c, ctx, func(ctx context.Context) (*http.Response, error) { return c.requests.GetRevision(ctx, number) })
}

// Diff is what changed between two revisions; from 0 is the empty mesh, to 0
// the newest revision.
func (c *Client) Diff(ctx context.Context, from, to int64) (*Diff, error) {
	return decode[Diff](c, ctx, func(ctx context.Context) (*http.Response, error) {
		return c.requests.DiffConfig(ctx, &DiffConfigParams{From: from, To: to})
	})
}

// ConfigSchema is the JSON Schema of the mesh file.
func (c *Client) ConfigSchema(ctx context.Context) ([]byte, error) {
	return c.call(ctx, c.timeout(), func(ctx context.Context) (*http.Response, error) { return c.requests.GetConfigSchema(ctx) })
}

// CreateKey makes an API key. Its secret is nowhere else.
func (c *Client) CreateKey(ctx context.Context, r KeyRequest) (*NewKey, error) {
	return decode[NewKey](c, ctx, func(ctx context.Context) (*http.Response, error) { return c.requests.CreateKey(ctx, r) })
}

// Keys is a page of the API keys, oldest first.
func (c *Client) Keys(ctx context.Context, p ListKeysParams) (*KeyList, error) {
	return decode[KeyList](c, ctx, func(ctx context.Context) (*http.Response, error) { return c.requests.ListKeys(ctx, &p) })
}

// RevokeKey revokes an API key by its id.
func (c *Client) RevokeKey(ctx context.Context, id string) error {
	_, err := c.call(ctx, c.timeout(), func(ctx context.Context) (*http.Response, error) { return c.requests.RevokeKey(ctx, id) })
	return err
}

// IssueCertificate gives an administrator a certificate.
func (c *Client) IssueCertificate(ctx context.Context, r CertificateRequest) (*NewCertificate, error) {
	return decode[NewCertificate](c, ctx, func(ctx context.Context) (*http.Response, error) { return c.requests.IssueCertificate(ctx, r) })
}

// LogLevels are what the server and each agent log.
func (c *Client) LogLevels(ctx context.Context) (*LogLevelList, error) {
	return decode[LogLevelList](c, ctx, func(ctx context.Context) (*http.Response, error) { return c.requests.ListLogLevels(ctx) })
}

// SetLogLevel changes that for a time.
func (c *Client) SetLogLevel(ctx context.Context, r LogLevelRequest) (*LogLevelList, error) {
	return decode[LogLevelList](c, ctx, func(ctx context.Context) (*http.Response, error) { return c.requests.SetLogLevel(ctx, r) })
}

// Bans are the identities that take no part.
func (c *Client) Bans(ctx context.Context) (*BanList, error) {
	return decode[BanList](c, ctx, func(ctx context.Context) (*http.Response, error) { return c.requests.ListBans(ctx) })
}

// Ban cuts an identity off.
func (c *Client) Ban(ctx context.Context, r BanRequest) (*BanResult, error) {
	return decode[BanResult](c, ctx, func(ctx context.Context) (*http.Response, error) { return c.requests.CreateBan(ctx, r) })
}

// Unban lets a banned identity take part again.
func (c *Client) Unban(ctx context.Context, identity string) (*BanResult, error) {
	return decode[BanResult](c, ctx, func(ctx context.Context) (*http.Response, error) {
		return c.requests.DeleteBan(ctx, &DeleteBanParams{Identity: identity})
	})
}

// CreateJoinToken makes a token by which one host joins. It is nowhere else.
func (c *Client) CreateJoinToken(ctx context.Context, r JoinTokenRequest) (*JoinToken, error) {
	return decode[JoinToken](c, ctx, func(ctx context.Context) (*http.Response, error) { return c.requests.CreateJoinToken(ctx, r) })
}

// Events is a page of recorded events.
func (c *Client) Events(ctx context.Context, p ListEventsParams) (*EventList, error) {
	return decode[EventList](c, ctx, func(ctx context.Context) (*http.Response, error) { return c.requests.ListEvents(ctx, &p) })
}

// Event is one event by its id.
func (c *Client) Event(ctx context.Context, id string) (*Entry, error) {
	return decode[Entry](c, ctx, func(ctx context.Context) (*http.Response, error) { return c.requests.GetEvent(ctx, id) })
}

// Proof is the proof file of one event.
func (c *Client) Proof(ctx context.Context, id string) ([]byte, error) {
	return c.call(ctx, c.timeout(), func(ctx context.Context) (*http.Response, error) { return c.requests.ProveEvent(ctx, id) })
}

// Logs are all logs.
func (c *Client) Logs(ctx context.Context) (*LogList, error) {
	return decode[LogList](c, ctx, func(ctx context.Context) (*http.Response, error) { return c.requests.ListLogs(ctx) })
}

// Stats are the figures of the logs, and of what happened since.
func (c *Client) Stats(ctx context.Context, p CountEventsParams) (*AuditStats, error) {
	return decode[AuditStats](c, ctx, func(ctx context.Context) (*http.Response, error) { return c.requests.CountEvents(ctx, &p) })
}

// Entries calls each for the entries of a log that p names, all of them, in order. It
// takes as long as ctx lets it.
func (c *Client) Entries(ctx context.Context, log string, p ExportEntriesParams, each func(*LogEntry) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	resp, err := c.requests.ExportEntries(ctx, log, &p)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	next := p.First
	err = readLines(ctx, c, resp, func(e *LogEntry) error {
		if e.Index != next {
			return fault.New(fault.Unreachable, "run it again", "entry %d of %s came in the place of entry %d", e.Index, log, next)
		}
		next++
		return each(e)
	})
	if err == nil && next != p.To {
		err = fault.New(fault.Unreachable, "see why in the server's log, and run it again", "the server ended the export of %s at entry %d of %d", log, next, p.To)
	}
	return err
}

// Erase takes away what events say of a person.
func (c *Client) Erase(ctx context.Context, r EraseRequest) (*EraseResult, error) {
	body, err := c.call(ctx, max(c.timeout(), VerifyTimeout), func(ctx context.Context) (*http.Response, error) { return c.requests.ErasePerson(ctx, r) })
	if err != nil {
		return nil, err
	}
	return parse[EraseResult](body)
}

// Tail calls each for the newest events and, if p.Follow is set, for every one
// that arrives later, until ctx ends, the server does, or each returns an error,
// which is then Tail's. Only p.Follow lifts the client's time limit.
func (c *Client) Tail(ctx context.Context, p TailEventsParams, each func(*Entry) error) error {
	ctx, cancel := context.WithCancel(ctx)
	if !p.Follow {
		ctx, cancel = context.WithTimeout(ctx, c.timeout())
	}
	defer cancel()
	resp, err := c.requests.TailEvents(ctx, &p)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return readLines(ctx, c, resp, each)
}

// VerifyMesh has every edge of the mesh file attacked and calls each with what comes
// of it, until the end, which is the line with Done, or until ctx ends, which ends
// the verification too. No other time limit holds but the request's.
func (c *Client) VerifyMesh(ctx context.Context, r VerifyRequest, each func(*VerifyLine) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	resp, err := c.requests.VerifyMesh(ctx, r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	over := false
	err = readLines(ctx, c, resp, func(l *VerifyLine) error {
		over = over || l.Done.Missed != nil
		return each(l)
	})
	if ctx.Err() == nil && !over && (err == nil || len(fault.All(err)) > 0) {
		return fault.New(fault.Unreachable, "see why in the server's log, and run it again", "the server ended the verification before its end")
	}
	return err
}

// readLines calls each for every line of a reply that is not empty.
func readLines[T any](ctx context.Context, c *Client, resp *http.Response, each func(*T) error) error {
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(make([]byte, 0, 64<<10), maxEntryLine)
	for lines.Scan() {
		if len(bytes.TrimSpace(lines.Bytes())) == 0 {
			continue
		}
		e, err := parse[T](lines.Bytes())
		if err != nil {
			return err
		}
		if err := each(e); err != nil {
			return err
		}
	}
	if err := lines.Err(); err != nil && !errors.Is(err, io.EOF) {
		return c.unreachable(ctx, err)
	}
	return nil
}

// maxEntryLine is the longest line of a tail: an event of the largest size with
// what stands around it.
const maxEntryLine = 256 << 10

// Verify recomputes every stored log. That a log does not verify is no error.
func (c *Client) Verify(ctx context.Context) (*Verification, error) {
	body, err := c.call(ctx, max(c.timeout(), VerifyTimeout), func(ctx context.Context) (*http.Response, error) { return c.requests.VerifyAudit(ctx) })
	if err != nil {
		return nil, err
	}
	return parse[Verification](body)
}

// Why explains a decision that was made, or one that would be.
func (c *Client) Why(ctx context.Context, p ExplainParams) (*Explanation, error) {
	return decode[Explanation](c, ctx, func(ctx context.Context) (*http.Response, error) { return c.requests.Explain(ctx, &p) })
}

// Bundle is the trust domain's root certificates in PEM.
func (c *Client) Bundle(ctx context.Context) ([]byte, error) {
	return c.call(ctx, c.timeout(), func(ctx context.Context) (*http.Response, error) { return c.requests.GetBundle(ctx) })
}

// Certificates is a page of the certificates that have not ended.
func (c *Client) Certificates(ctx context.Context, p ListCertificatesParams) (*CertificateList, error) {
	return decode[CertificateList](c, ctx, func(ctx context.Context) (*http.Response, error) { return c.requests.ListCertificates(ctx, &p) })
}
