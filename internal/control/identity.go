package control

import (
	"bytes"
	"context"
	"encoding/pem"
	"fmt"

	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/fault"
)

// maxSerial is the longest serial number in hexadecimal (RFC 5280 section
// 4.1.2.2: 20 octets).
const maxSerial = 40

func (o operations) GetBundle(context.Context, api.GetBundleRequestObject) (api.GetBundleResponseObject, error) {
	bundle := o.cfg.Runtime.Bundle()
	if bundle == nil || len(bundle.Roots) == 0 {
		return nil, fault.New(fault.NotFound, "see what runs: parley status", "the trust domain has no root yet")
	}
	var out bytes.Buffer
	for _, root := range bundle.Roots {
		out.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Raw}))
	}
	return api.GetBundle200ApplicationXPemFileResponse{Body: &out, ContentLength: int64(out.Len())}, nil
}

func (o operations) ListCertificates(ctx context.Context, r api.ListCertificatesRequestObject) (api.ListCertificatesResponseObject, error) {
	limit, err := pageSize(r.Params.Limit)
	if err != nil {
		return nil, err
	}
	if len(r.Params.Cursor) > maxSerial {
		return nil, badCursor(r.Params.Cursor)
	}
	certs, err := o.cfg.Certificates.Certificates(ctx, o.cfg.Clock.Now(), r.Params.Cursor, limit+1)
	if err != nil {
		return nil, fmt.Errorf("list the certificates: %w", err)
	}
	list := api.CertificateList{Items: []api.Certificate{}}
	if len(certs) > limit {
		certs = certs[:limit]
		list.Next = certs[limit-1].Serial
	}
	list.Items = append(list.Items, certs...)
	return api.ListCertificates200JSONResponse(list), nil
}
