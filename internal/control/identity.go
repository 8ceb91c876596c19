package control

import (
	"bytes"
	"context"
	"encoding/pem"
	"fmt"
	"strings"

	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/identity"
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

// maxCSR bounds a certificate request, in bytes.
const maxCSR = 16 << 10

func (o operations) IssueCertificate(ctx context.Context, r api.IssueCertificateRequestObject) (api.IssueCertificateResponseObject, error) {
	name, ok := strings.CutPrefix(r.Body.Identity, "admin/")
	id, err := identity.AdminID(o.cfg.TrustDomain, name)
	if _, is := id.AdminName(); !ok || err != nil || !is {
		return nil, fault.New(fault.BadRequest, "name an administrator of the mesh file: admin/NAME", "%q is not issued to on request: services get theirs by themselves", clip(r.Body.Identity))
	}
	if len(r.Body.Csr) > maxCSR {
		return nil, fault.New(fault.BadRequest, "", "a certificate request has at most %d bytes", maxCSR)
	}
	chain, err := o.cfg.Admins.IssueAdmin(ctx, id, r.Body.Csr)
	if err != nil {
		return nil, err
	}
	reply := api.IssueCertificate201JSONResponse{ID: id.String()}
	for _, der := range chain {
		reply.Chain += string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	}
	for _, root := range o.cfg.Runtime.Bundle().Roots {
		reply.Roots += string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Raw}))
	}
	return reply, nil
}
