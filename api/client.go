package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// maxAnswer bounds what a client reads: 4096 endpoints on 256 nodes would be
// more than any table shows.
const maxAnswer = 64 << 20

// Client talks to an agent. Its methods may be called from several
// goroutines. Every error is or wraps an *Error.
type Client struct {
	path string
	http *http.Client
}

// NewClient returns a client of the agent whose socket is at path. It does
// not connect yet.
func NewClient(path string) *Client {
	var d net.Dialer
	return &Client{path: path, http: &http.Client{
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return d.DialContext(ctx, "unix", path)
			},
			DisableCompression: true,
			MaxIdleConns:       2,
			IdleConnTimeout:    10 * time.Second,
		},
		// The server never redirects; following one would leave the socket.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// Close gives back idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Status asks for the agent's status.
func (c *Client) Status(ctx context.Context) (Status, error) {
	return do[Status](ctx, c, http.MethodGet, "/v1/status", nil)
}

// Members lists the nodes of the cluster.
func (c *Client) Members(ctx context.Context) (MemberList, error) {
	return do[MemberList](ctx, c, http.MethodGet, "/v1/members", nil)
}

// Networks lists the networks of this node.
func (c *Client) Networks(ctx context.Context) (NetworkList, error) {
	return do[NetworkList](ctx, c, http.MethodGet, "/v1/networks", nil)
}

// Endpoints lists the endpoints on all nodes.
func (c *Client) Endpoints(ctx context.Context) (EndpointList, error) {
	return do[EndpointList](ctx, c, http.MethodGet, "/v1/endpoints", nil)
}

// Attach plugs a network namespace into a network.
func (c *Client) Attach(ctx context.Context, req AttachRequest) (EndpointAnswer, error) {
	return do[EndpointAnswer](ctx, c, http.MethodPost, "/v1/endpoints", req)
}

// Detach removes an endpoint.
func (c *Client) Detach(ctx context.Context, id string) error {
	_, err := do[Done](ctx, c, http.MethodDelete, "/v1/endpoints/"+url.PathEscape(id), nil)
	return err
}

// CreateNetwork gives the cluster a network.
func (c *Client) CreateNetwork(ctx context.Context, req NetworkRequest) (NetworkAnswer, error) {
	return do[NetworkAnswer](ctx, c, http.MethodPost, "/v1/networks", req)
}

// UpdateNetwork changes a network between encrypted and plaintext.
func (c *Client) UpdateNetwork(ctx context.Context, name string, req NetworkUpdate) (NetworkAnswer, error) {
	return do[NetworkAnswer](ctx, c, http.MethodPost, "/v1/networks/"+url.PathEscape(name), req)
}

// RemoveNetwork takes a network out of the cluster; force: also if it is in use.
func (c *Client) RemoveNetwork(ctx context.Context, name string, force bool) error {
	path := "/v1/networks/" + url.PathEscape(name)
	if force {
		path += "?force=true"
	}
	_, err := do[Done](ctx, c, http.MethodDelete, path, nil)
	return err
}

// Reload has the agent read its configuration again.
func (c *Client) Reload(ctx context.Context) (Reload, error) {
	return do[Reload](ctx, c, http.MethodPost, "/v1/reload", nil)
}

// CreateToken makes a join token. The answer holds its secret.
func (c *Client) CreateToken(ctx context.Context, req TokenRequest) (NewToken, error) {
	return do[NewToken](ctx, c, http.MethodPost, "/v1/tokens", req)
}

// Tokens lists the join tokens that the node issued.
func (c *Client) Tokens(ctx context.Context) (TokenList, error) {
	return do[TokenList](ctx, c, http.MethodGet, "/v1/tokens", nil)
}

// RevokeToken makes a token useless.
func (c *Client) RevokeToken(ctx context.Context, id string) error {
	_, err := do[Done](ctx, c, http.MethodDelete, "/v1/tokens/"+url.PathEscape(id), nil)
	return err
}

// DecideJoin approves or denies the join of a node that waits at a token.
func (c *Client) DecideJoin(ctx context.Context, id string, d JoinDecision) (JoinDecided, error) {
	return do[JoinDecided](ctx, c, http.MethodPost, "/v1/tokens/"+url.PathEscape(id)+"/decision", d)
}

// Keys asks for key epochs and how far pairs and nodes are.
func (c *Client) Keys(ctx context.Context) (KeyStatus, error) {
	return do[KeyStatus](ctx, c, http.MethodGet, "/v1/keys", nil)
}

// Rotate asks for a new key epoch in the whole cluster.
func (c *Client) Rotate(ctx context.Context, req RotateRequest) (Rotation, error) {
	return do[Rotation](ctx, c, http.MethodPost, "/v1/keys/rotate", req)
}

// KeyHistory lists what happened to keys, oldest first.
func (c *Client) KeyHistory(ctx context.Context) (KeyHistory, error) {
	return do[KeyHistory](ctx, c, http.MethodGet, "/v1/keys/history", nil)
}

// Issuers lists the nodes that have an issuer key.
func (c *Client) Issuers(ctx context.Context) (IssuerList, error) {
	return do[IssuerList](ctx, c, http.MethodGet, "/v1/issuers", nil)
}

// RequestIssuer asks for what the holder of the root key has to sign.
func (c *Client) RequestIssuer(ctx context.Context) (IssuerRequest, error) {
	return do[IssuerRequest](ctx, c, http.MethodPost, "/v1/issuers/request", nil)
}

// InstallIssuer gives the node the root's delegation.
func (c *Client) InstallIssuer(ctx context.Context, req IssuerInstall) (IssuerInstalled, error) {
	return do[IssuerInstalled](ctx, c, http.MethodPost, "/v1/issuers/install", req)
}

// RequestIssuerRevocation asks for what the root key has to sign for an issuer to
// be revoked.
func (c *Client) RequestIssuerRevocation(ctx context.Context, req IssuerRevocationRequest) (IssuerRevocationDraft, error) {
	return do[IssuerRevocationDraft](ctx, c, http.MethodPost, "/v1/issuers/revocations/request", req)
}

// RevokeIssuer gives the node what the root key has signed.
func (c *Client) RevokeIssuer(ctx context.Context, req IssuerRevocationSigned) (IssuerRevocationAnswer, error) {
	return do[IssuerRevocationAnswer](ctx, c, http.MethodPost, "/v1/issuers/revocations", req)
}

// Revoke throws a node out of the cluster.
func (c *Client) Revoke(ctx context.Context, req RevokeRequest) (RevocationAnswer, error) {
	return do[RevocationAnswer](ctx, c, http.MethodPost, "/v1/revocations", req)
}

// Revocations lists the nodes that were thrown out, oldest first.
func (c *Client) Revocations(ctx context.Context) (RevocationList, error) {
	return do[RevocationList](ctx, c, http.MethodGet, "/v1/revocations", nil)
}

// Protocol asks which protocol versions are spoken.
func (c *Client) Protocol(ctx context.Context) (ProtocolAnswer, error) {
	return do[ProtocolAnswer](ctx, c, http.MethodGet, "/v1/protocol", nil)
}

// SetFloor changes the lowest protocol version that the cluster allows.
func (c *Client) SetFloor(ctx context.Context, req FloorRequest) (ProtocolAnswer, error) {
	return do[ProtocolAnswer](ctx, c, http.MethodPost, "/v1/protocol/floor", req)
}

// Leave takes the node out of the cluster.
func (c *Client) Leave(ctx context.Context, req LeaveRequest) (DepartureAnswer, error) {
	return do[DepartureAnswer](ctx, c, http.MethodPost, "/v1/leave", req)
}

// Departure asks who knows that the node has left.
func (c *Client) Departure(ctx context.Context) (DepartureAnswer, error) {
	return do[DepartureAnswer](ctx, c, http.MethodGet, "/v1/leave", nil)
}

// FinishLeave asks the agent of a node that has left to remove everything, the
// node's keys included, and to exit.
func (c *Client) FinishLeave(ctx context.Context) (LeaveResult, error) {
	return do[LeaveResult](ctx, c, http.MethodPost, "/v1/leave/finish", nil)
}

// Down asks the agent to remove everything and to exit.
func (c *Client) Down(ctx context.Context, req DownRequest) (DownResult, error) {
	return do[DownResult](ctx, c, http.MethodPost, "/v1/down", req)
}

// Events lists what happened on the node, oldest first.
func (c *Client) Events(ctx context.Context, q EventQuery) (EventList, error) {
	path := "/v1/events"
	if v := q.values(); len(v) > 0 {
		path += "?" + v.Encode()
	}
	return do[EventList](ctx, c, http.MethodGet, path, nil)
}

// Metrics asks for the agent's metrics in Prometheus' text format.
func (c *Client) Metrics(ctx context.Context) ([]byte, error) {
	return c.exchange(ctx, http.MethodGet, "/v1/metrics", nil)
}

// do makes one call and decodes its answer.
func do[T any](ctx context.Context, c *Client, method, path string, body any) (T, error) {
	var out T
	raw, err := c.exchange(ctx, method, path, body)
	if err != nil {
		return out, err
	}
	var head struct {
		Schema int `json:"schema"`
	}
	if err := json.Unmarshal(raw, &head); err != nil || head.Schema != Schema {
		return out, &Error{Code: CodeFailed, Err: err, Fix: "use the same version of secure-overlay for both",
			Message: fmt.Sprintf("the agent answers in schema %d, this command understands %d", head.Schema, Schema)}
	}
	if err := json.Unmarshal(raw, &out); err != nil {
		return out, &Error{Code: CodeFailed, Message: "the agent's answer cannot be read: " + err.Error(), Err: err}
	}
	return out, nil
}

// exchange makes one call and returns the body of a good answer.
func (c *Client) exchange(ctx context.Context, method, path string, body any) ([]byte, error) {
	var rd io.Reader
	if body != nil {
		raw, err := json.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("encode request: %w", err)
		}
		rd = bytes.NewReader(raw)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://agent"+path, rd)
	if err != nil {
		return nil, fmt.Errorf("make request: %w", err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, c.transportError(ctx, err)
	}
	defer func() { _ = res.Body.Close() }()
	raw, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return nil, c.transportError(ctx, err)
	}
	if res.StatusCode != http.StatusOK {
		return nil, answerError(res.StatusCode, raw)
	}
	return raw, nil
}

// answerError turns the body of a failed call into an *Error.
func answerError(status int, raw []byte) error {
	var f failure
	if err := json.Unmarshal(raw, &f); err != nil || f.Error == nil || f.Error.Message == "" {
		return &Error{Code: CodeFailed, Message: fmt.Sprintf("the agent answered with HTTP status %d and no explanation", status)}
	}
	return f.Error
}

// transportError says why the agent could not be asked.
func (c *Client) transportError(ctx context.Context, err error) error {
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return &Error{Code: CodeFailed, Message: "interrupted", Err: err}
	case ctx.Err() != nil || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded):
		return &Error{Code: CodeTimeout, Message: "the agent did not answer in time", Err: err}
	case errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM):
		return &Error{Code: CodePermission, Message: "no permission to use the control socket " + c.path, Fix: "run the command with sudo", Err: err}
	case errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ENOTDIR):
		return &Error{Code: CodeNotRunning, Message: "no agent is running (nobody answers on " + c.path + ")", Fix: "sudo secure-overlay up -c FILE", Err: err}
	default:
		return &Error{Code: CodeFailed, Message: "the control socket failed: " + err.Error(), Err: err}
	}
}
