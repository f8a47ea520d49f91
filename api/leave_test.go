package api

import "testing"

func leaveRoundTrip(t *testing.T, c *Client) {
	t.Helper()
	if _, err := c.Departure(t.Context()); CodeOf(err) != CodeRefused {
		t.Errorf("departure of a member: %v", err)
	}
	if _, err := c.Leave(t.Context(), LeaveRequest{}); CodeOf(err) != CodeRefused {
		t.Errorf("leave without force: %v", err)
	}
	d, err := c.Leave(t.Context(), LeaveRequest{Force: true})
	if err != nil || d.Schema != Schema || d.Left.Unix() != 1 || d.Told != (Count{OK: 1, Total: 2}) || d.Waiting == nil {
		t.Errorf("leave = %+v, %v", d, err)
	}
	if d, err = c.Departure(t.Context()); err != nil || d.Schema != Schema || d.Told.OK != 2 {
		t.Errorf("departure = %+v, %v", d, err)
	}
	res, err := c.FinishLeave(t.Context())
	if err != nil || res.Schema != Schema || res.DataDir != "/data" || res.Removed == nil || res.Waiting == nil || res.Told.OK != 2 {
		t.Errorf("finish = %+v, %v", res, err)
	}
}
